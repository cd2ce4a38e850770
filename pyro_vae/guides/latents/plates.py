"""The plate of the observations, as a model opens it in one kind of call."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.util import ignore_jit_warnings


@dataclass(frozen=True)
class ObservationPlate:
    """The plate of the observations as the model opened it in one kind of call."""

    name: str
    """Of the plate."""
    size: int
    """Observations in the whole data."""
    batch_size: int
    """Observations in this call."""
    given: bool
    """Whether the caller chose which (``subsample=``); otherwise the plate itself draws them."""
    dim: int = -1
    """Where it lies."""

    @property
    def draws(self) -> bool:
        """Whether the plate itself draws which observations take part."""
        return self.batch_size < self.size and not self.given

    def check(self, rows: int) -> None:
        """Raise ValueError unless the encoder's ``rows`` are the batch or, where the plate itself draws the
        batch, the whole data."""
        if rows == self.batch_size or (rows == self.size and not self.given):
            return
        whole = f" (or {self.size}, for the plate to draw from)" if self.batch_size < self.size else ""
        raise ValueError(
            f"the encoder returned {rows} rows of features, but plate '{self.name}' of the model has "
            f"{self.batch_size} observations in this call: return one row per observation, "
            f"{self.batch_size}{'' if self.given else whole}"
        )

    def open(self, rows: int) -> pyro.plate:
        """The same plate for a guide whose encoder returned ``rows`` rows of features (:meth:`check`)."""
        self.check(rows)
        if rows == self.batch_size:
            # The batch is chosen already, so the plate's indices mean nothing here; recorded, they would
            # replace the model's own.
            with poutine.block():
                return pyro.plate(self.name, self.size, subsample=torch.arange(rows), dim=self.dim)
        return pyro.plate(self.name, self.size, subsample_size=self.batch_size, dim=self.dim)


def call_signature(value: Any) -> Hashable:
    """What of a call's arguments can change its plates: shapes of tensors, integers, flags, strings.

    Floats are left out: an annealing weight may change in every step.
    """
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, Mapping):
        return tuple((key, call_signature(value[key])) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(call_signature(item) for item in value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else (type(value).__name__, tuple(plain_shape(shape)))


def plain_shape(shape: Iterable[Any]) -> torch.Size:
    """A shape in plain integers: inside ``torch.jit.trace``, and so under Pyro's Jit ELBOs, sizes are
    tensors, which are equal to no size that was seen before."""
    with ignore_jit_warnings():
        return torch.Size(int(size) for size in shape)
