"""Selections that a graph can hold, because their size depends on nothing: assignment by a mask,
``a[m] = b[m]``, as a choice between two tensors, and ``a[i]`` by a scalar that was drawn; and assignments of
one number, ``a[m] = 0`` and ``a[..., 0] = 0``, as one choice."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from pyro_vae.graphs.in_place import SCATTERED
from pyro_vae.graphs.rewriting import as_node, first, instead, made_constant, one_value

aten = torch.ops.aten
_FILLS = (aten.fill.Scalar, aten.fill.Tensor)
_VIEW_OF_THE_PART: dict[Any, Any] = {scatter: view for view, scatter in SCATTERED.items()}


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


def number_in_a_part(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``a[..., 0] = number``: a choice between the number and ``a``, by a mask that never changes."""
    view, whole = _VIEW_OF_THE_PART.get(node.target), first(node)
    part = as_node(node.args[1]) if view is not None else None
    if whole is None or part is None or part.target not in (aten.copy.default, *_FILLS):
        return None
    like = node.meta["val"]
    mask = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    cast(Any, view)(mask, *node.args[2:], **node.kwargs).fill_(True)
    for dim in range(mask.dim()):  # no larger than it must be
        if torch.equal(mask.narrow(dim, 0, 1).expand_as(mask), mask):
            mask = mask.narrow(dim, 0, 1)
    return _chosen(graph, node, mask.contiguous(), part.args[1], whole)


def number_by_mask(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``a[mask] = number``: a choice between the number and ``a``."""
    if node.target is not aten.index_put.default or any(node.args[3:]) or node.kwargs:
        return None
    whole, (mask, *others), number = as_node(node.args[0]), cast(Any, node.args[1]), node.args[2]
    if others or whole is None or not isinstance(mask, fx.Node):
        return None
    like = mask.meta["val"]
    if like.dtype != torch.bool or like.shape != node.meta["val"].shape:
        return None
    return _chosen(graph, node, mask, number, whole)


def _chosen(
    graph: fx.GraphModule, node: fx.Node, mask: Tensor | fx.Node, number: object, whole: fx.Node
) -> fx.Node | None:
    """The number where the mask is true, and the whole elsewhere, if it is one number."""
    like: Tensor = node.meta["val"]
    if not like.is_contiguous() or not whole.meta["val"].is_contiguous() or not like.numel():
        return None
    value = one_value(graph, number)
    if value is not None:
        chosen = torch.tensor(value, dtype=like.dtype, device=like.device)
        number = made_constant(node, graph, f"in_{node.name}", chosen)
    elif not isinstance(number, fx.Node) or not _is_one_of(like, number.meta["val"]):
        return None
    if isinstance(mask, Tensor):
        mask = made_constant(node, graph, f"part_{node.name}", mask)
    return instead(node, aten.where.self, mask, number, whole)


def _is_one_of(whole: Tensor, number: Tensor) -> bool:
    return not number.dim() and number.dtype == whole.dtype
