"""Does a captured graph still say what Pyro says?

A graph holds every number that was not a tensor at the value it had. What depends on Python state (an
annealed float on a module, numpy's random numbers, a counter) is therefore wrong in it without any error. The
cure is to look: the same seed must give the same numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.devices import forked_streams

_RTOL = 1e-3
"""Relative to the largest element: kernels may sum in another order, while anything frozen is off by far
more."""


def agree(expected: Callable[[], Sequence[Tensor]], graph: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether two functions return the same tensors from the same random stream, which is left where it
    was."""
    with forked_streams():
        seed = torch.initial_seed() & 0x7FFF_FFFF_FFFF_FFFF
        torch.manual_seed(seed)
        wanted = expected()
        torch.manual_seed(seed)
        given = graph()
    return len(wanted) == len(given) and all(close(a, b) for a, b in zip(given, wanted, strict=True))


def close(a: Tensor, b: Tensor) -> bool:
    """Relative to the largest element; where both are non-finite they agree, for the fit judges that by
    itself."""
    if a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return False
    a, b = a[finite].double(), b[finite].double()
    if a.numel() == 0:
        return True
    return bool((a - b).abs().max() <= _RTOL * b.abs().max() + 1e-12)


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What changed, in words, for the log."""
    changes = [
        f"{name} was {before[name]!r} and is {after[name]!r}"
        for name in before
        if after.get(name) != before[name]
    ]
    return (
        "; ".join(changes)
        or "no plain attribute of the modules did, so numpy or Python random numbers, a counter, or a closure"
    )
