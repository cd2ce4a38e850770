"""Assignment by a mask, ``a[m] = b[m]``, as a choice between two tensors, whose size depends on nothing."""

from typing import NamedTuple

import torch
from torch import Tensor, fx


class Selection(NamedTuple):
    """``result = source[mask]``, which ``line`` of the program selected."""

    result: Tensor
    source: Tensor
    mask: Tensor
    line: str
    node: fx.Node


class Selections:
    """What was selected by masks so far, of which some is only selected to be assigned by the same mask."""

    def __init__(self) -> None:
        self._known: dict[int, Selection] = {}

    def note(self, selection: Selection) -> None:
        """Remember what was selected."""
        self._known[id(selection.result)] = selection

    def of(self, tensor: object) -> Selection | None:
        """How a tensor was selected by a mask, if it was."""
        return self._known.get(id(tensor))

    def assign(self, target: Tensor, mask: Tensor, value: object) -> Selection | None:
        """``target[mask] = value``, if ``value`` was selected by this mask; which selection that was."""
        known = self.of(value)
        if known is None or known.mask is not mask or known.source.shape != target.shape:
            return None
        chosen = mask.reshape(*mask.shape, *[1] * (target.dim() - mask.dim()))
        target.copy_(torch.where(chosen, known.source, target))
        return known
