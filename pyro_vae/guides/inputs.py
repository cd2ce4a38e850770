"""What a guide is given outside of Pyro: whatever ``fit`` takes as data."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pyro_vae.arguments import refuse_lazy, without_trace
from pyro_vae.arrays import as_tensor, plain_array, subsets

PLAIN = (bool, int, float, str, dict, type(None))
"""What programs take beside arrays."""


class EncoderProgram(Protocol):
    """A guide module whose encoder has parameters of q for each observation."""

    needs_data: bool
    """Whether it has none of its own."""

    def parameters(self) -> Any:
        """Of the module."""

    def local_parameters(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Of q."""


def encoded(guide: EncoderProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The local parameters of a guide for arrays, data frames and other array-likes: on the guide's device,
    floating point in its dtype, and integers too where the encoder does not take them as they are."""
    leaf = next((parameter for parameter in guide.parameters() if parameter.is_floating_point()), None)
    dtype = torch.get_default_dtype() if leaf is None else leaf.dtype
    device = torch.device("cpu") if leaf is None else leaf.device

    def placed(value: Any, name: str) -> Any:
        return value if isinstance(value, PLAIN) else as_tensor(value, name, device, dtype)

    if isinstance(guide, nn.Module):
        refuse_lazy(guide)
    if guide.needs_data and not args and not kwargs:
        raise TypeError("there is no argument 0; give the data, as for fit")
    first: Any = args[0] if args else None
    if args and isinstance(first, PLAIN) and not isinstance(first, dict):
        plain_array(first, "argument 0")

    names = [*range(len(args)), *kwargs]
    values = [placed(arg, f"argument {i}") for i, arg in enumerate(args)]
    values += [placed(value, name) for name, value in kwargs.items()]

    def run(given: list[Any]) -> dict[str, Tensor]:
        named = dict(zip(names[len(args) :], given[len(args) :], strict=True))
        try:
            return guide.local_parameters(*given[: len(args)], **{str(k): v for k, v in named.items()})
        except (ValueError, TypeError, RuntimeError) as error:
            if str(error) == without_trace(error):
                raise
            raise type(error)(without_trace(error)) from error

    whole = [
        i for i, value in enumerate(values) if isinstance(value, Tensor) and not value.is_floating_point()
    ]
    for floats in subsets(whole):
        try:
            found = run([v.to(dtype) if i in floats else v for i, v in enumerate(values)])
        except (TypeError, AttributeError):
            if isinstance(first, dict):  # some encoders take them, and most do not
                plain_array(first, "argument 0")
            raise
        except ZeroDivisionError:
            raise ValueError(f"argument 0 has shape {tuple(first.shape)}; give at least one row") from None
        except RuntimeError:
            if not whole:
                raise
        else:
            _require_finite(found, values)
            return found
    return run(values)


def _require_finite(found: dict[str, Tensor], values: list[Any]) -> None:
    """Some encoders know what to do with NaN; where it comes out again, the data are to blame."""
    if all(bool(torch.isfinite(parameter).all()) for parameter in found.values()):
        return
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            where = tuple(int(index) for index in (~torch.isfinite(value)).nonzero()[0])
            raise ValueError(
                f"argument {i} is {float(value[where])} at index {where}; remove or impute what is not finite"
            )
