"""What a guide is given outside of Pyro: whatever ``fit`` takes as data."""

from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.arrays import as_tensor, subsets

PLAIN = (bool, int, float, str, dict, type(None))
"""What programs take beside arrays."""


class EncoderProgram(Protocol):
    """A guide whose encoder has parameters of q for each observation."""

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

    names = [*range(len(args)), *kwargs]
    values = [placed(arg, f"argument {i}") for i, arg in enumerate(args)]
    values += [placed(value, name) for name, value in kwargs.items()]

    def run(given: list[Any]) -> dict[str, Tensor]:
        named = dict(zip(names[len(args) :], given[len(args) :], strict=True))
        return guide.local_parameters(*given[: len(args)], **{str(k): v for k, v in named.items()})

    whole = [i for i, value in enumerate(values) if isinstance(value, Tensor) and not value.is_floating_point()]
    for floats in subsets(whole):
        try:
            return run([v.to(dtype) if i in floats else v for i, v in enumerate(values)])
        except RuntimeError:
            if not whole:
                raise
    return run(values)
