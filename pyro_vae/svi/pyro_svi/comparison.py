"""Two evaluations of one loss from the same state: random streams, buffers, and whether the numbers agree."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pyro_vae.svi.engines.verification import close
from pyro_vae.svi.pyro_svi.entries import Outcome

_RTOL_OF_LOSS = 1e-4


class Streams:
    """The random streams of torch as they are now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Go on from here."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def equals(self, other: "Streams") -> bool:
        """Whether both would draw the same numbers."""
        mine, theirs = [self._cpu, *self._cuda], [other._cpu, *other._cuda]
        return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def draws_elsewhere() -> Callable[[], str | None]:
    """What says whether Python's or numpy's random numbers were drawn since."""
    python, array = random.getstate(), _numpy_state()

    def since() -> str | None:
        if random.getstate() != python:
            return "it draws Python's random numbers"
        return None if _numpy_state() == array else "it draws numpy's random numbers"

    return since


def _numpy_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return kind, bytes(np.asarray(keys)), *rest


@contextmanager
def from_state(streams: Streams, buffers: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, random streams and buffers are as they were then; afterwards as they are now."""
    now, left = Streams(), [buffer.clone() for buffer in buffers]
    try:
        _fill(buffers, values)
        streams.restore()
        yield
    finally:
        _fill(buffers, left)
        now.restore()


@torch.no_grad()
def _fill(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        if not torch.equal(buffer, value):  # guards count how often a tensor is changed
            buffer.copy_(value)


def agrees(graph: Outcome, pyro: Outcome) -> bool:
    """Whether a graph gave what Pyro gives, up to rounding."""
    if not all(_near(a, b) for a, b in zip(graph.numbers, pyro.numbers, strict=True)):
        return False
    for a, b in zip(graph.gradients, pyro.gradients, strict=True):
        if a is None:
            if b is not None and b.any():
                return False
        elif b is None or not close(a, b):
            return False
    return True


def _near(a: float, b: float) -> bool:
    if not math.isfinite(b):
        return not math.isfinite(a)
    return abs(a - b) <= _RTOL_OF_LOSS * abs(b) + 1e-5
