"""Selections that a graph can hold, because their size depends on nothing: assignment by a mask,
``a[m] = b[m]``, as a choice between two tensors, and ``a[i]`` by a scalar that was drawn."""

from typing import Any, NamedTuple

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


def indices_of(index: Any) -> tuple[Any, ...]:
    """What stands between the brackets of ``source[index]``, one by one."""
    return index if isinstance(index, tuple) else (index,)


def selected_by_scalar(source: Tensor, index: Any) -> Tensor | None:
    """``source[index]`` where an integer scalar is among the indices, and None where none is or where more
    than whole numbers and slices are beside it. Torch makes a number of the scalar; an index of one element
    selects the same, and stays a tensor."""
    parts = indices_of(index)
    tensors = [place for place, part in enumerate(parts) if isinstance(part, Tensor)]
    plain = all(type(part) is int or part is None or isinstance(part, slice | Tensor) for part in parts)
    if len(tensors) != 1 or not plain:
        return None
    place = tensors[0]
    if parts[place].dim() or parts[place].dtype not in (torch.int64, torch.int32):
        return None
    kept = sum(type(part) is not int for part in parts[:place])
    return source[(*parts[:place], parts[place].reshape(1), *parts[place + 1 :])].select(kept, 0)
