"""Assignment by a mask, ``a[m] = b[m]``, as a choice between two tensors, whose size depends on nothing."""

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """``source[mask]``."""

    result: Tensor
    source: Tensor
    mask: Tensor
    line: str


class Selections:
    """What was selected by masks so far, of which some is only selected to be assigned by the same mask."""

    def __init__(self) -> None:
        self._known: dict[int, Selection] = {}

    def note(self, result: Tensor, source: Tensor, mask: Tensor, line: str) -> None:
        """Remember ``result = source[mask]``."""
        self._known[id(result)] = Selection(result, source, mask, line)

    def assign(self, target: Tensor, mask: Tensor, value: object) -> str | None:
        """``target[mask] = value``, if ``value`` was selected by this mask; the line that selected it."""
        known = self._known.get(id(value))
        if known is None or known.mask is not mask or known.source.shape != target.shape:
            return None
        chosen = mask.reshape(*mask.shape, *[1] * (target.dim() - mask.dim()))
        target.copy_(torch.where(chosen, known.source, target))
        return known.line
