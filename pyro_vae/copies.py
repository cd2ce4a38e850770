"""Deep copies of modules that ``copy.deepcopy`` refuses."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Copied = TypeVar("Copied")


class CopyError(ValueError):
    """Something in a module cannot be copied; the message names it."""


class _Leaves(TorchFunctionMode):
    """Makes a tensor that was computed from others copy as its value: weights of ``weight_norm``,
    ``spectral_norm`` and pruning are computed anew at every call, and what a transform remembers of its last
    call is of no use to another one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = twin = tensor.detach().clone()
            return twin
        return func(*args, **(kwargs or {}))


def deep_copy(thing: Copied, memo: dict[int, Any] | None = None) -> Copied:
    """As ``copy.deepcopy``, also of modules with weights that are computed, with Pyro's transforms that
    remember their last call, and compiled ones, whose copies are not compiled. Raises CopyError if a part
    cannot be copied.

    Parameters
    ----------
    thing
        A module, or a bound method of one.
    memo
        What was copied already, as ``copy.deepcopy`` takes it: what two things share stays shared.

    Examples
    --------
    >>> norm = nn.utils.parametrizations.spectral_norm
    >>> layer = norm(nn.Linear(2, 3))
    >>> _ = layer(layer.weight[0])
    >>> bool((deep_copy(layer).eval().weight == layer.eval().weight).all())
    True
    """
    memo = {} if memo is None else memo
    root = getattr(thing, "__self__", thing)
    compiled = isinstance(root, nn.Module) and [m for m in root.modules() if hasattr(m, "_orig_mod")]
    try:
        with _Leaves():
            for module in compiled or ():
                if id(module) not in memo:
                    memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
            return copy.deepcopy(thing, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise CopyError(
            f"{type(root).__name__} cannot be copied ({str(error).splitlines()[0].rstrip('.')}), and it is "
            "examined as a copy in evaluation mode; hold what cannot be copied outside of the module"
        ) from error
