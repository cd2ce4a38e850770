"""Hold still what surrounds an evaluation: subsampling plates, the default dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger


@contextmanager
def whole_plates() -> Iterator[None]:
    """Plates that draw a subsample of their own (``subsample_size=``) go over all of their rows: a diagnosis
    is about the data, and not about a minibatch. Threads take turns inside, as :func:`isolated` has it."""
    plate: Any = SubsampleMessenger
    subsample = plate._subsample

    def whole(name: str, size: Any, subsample_size: Any, given: Any, *rest: Any) -> Any:
        return subsample(name, size, None if given is None else subsample_size, given, *rest)

    plate._subsample = staticmethod(whole)
    try:
        yield
    finally:
        plate._subsample = staticmethod(subsample)


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Constants that a program makes on the way (``torch.zeros(8)``) fit its parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
