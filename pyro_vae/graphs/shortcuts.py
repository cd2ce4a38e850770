"""The same numbers by cheaper operations, for graphs that torch replays one operation after the other.

Compiled steps need none of this: their compilers see it themselves. Numbers stay what they are, up to the
last bit of a logarithm that is computed for fewer elements at once.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from pyro_vae.graphs.rewriting import apply_rules, first, instead, replace
from pyro_vae.graphs.simplification import has_effect, merge_equal, order_counts

aten = torch.ops.aten
_PAIRWISE = (aten.add.Tensor, aten.div.Tensor, aten.mul.Tensor, aten.sub.Tensor)
_ELEMENTWISE = (aten.exp.default, aten.log.default, aten.neg.default, *_PAIRWISE)


def take_shortcuts(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that shares its tensors, with the rules of this module applied; to be recompiled.

    As in :func:`~pyro_vae.graphs.simplification.simplify`, a graph that changes tensors in place
    keeps its operations.
    """
    shorter = _LazyGraphModule(graph, copy.deepcopy(graph.graph))
    if order_counts(shorter):
        return shorter
    _compute_before_expanding(shorter)
    apply_rules(shorter, [_sum_without_the_kept_dimension])
    while merge_equal(shorter):
        pass
    shorter.graph.eliminate_dead_code(is_impure_node=has_effect)
    return shorter


def _sum_without_the_kept_dimension(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Σ over a dimension that is kept with length 1, and a view without it: how autograd sums a bias's
    gradient over the batch."""
    kept = first(node) if node.target is aten.view.default else None
    if kept is None or kept.target is not aten.sum.dim_IntList or len(kept.args) != 3 or kept.kwargs:
        return None
    argument, dims = first(kept), kept.args[1]
    if argument is None or not isinstance(dims, list | tuple) or not dims or len(kept.users) > 1:
        return None
    given, result = _like(argument), _like(node)
    if given is None or result is None or not given.dim():
        return None
    summed = {dim % given.dim() for dim in dims}
    if result.shape != torch.Size(n for i, n in enumerate(given.shape) if i not in summed):
        return None
    return instead(node, aten.sum.dim_IntList, argument, dims)


def _compute_before_expanding(graph: fx.GraphModule) -> None:
    """Do with a tensor what is done with its expansion (a prior's log σ, the KL's weight), for as long as the
    other operands are no larger: elementwise operations expand their operands themselves."""
    before: dict[object, fx.Node] = {}
    for node in list(graph.graph.nodes):
        argument = first(node)
        if argument is None:
            continue
        source = before.get(argument, argument)
        if node.target is aten.expand.default or (
            node.target is aten.unsqueeze.default and _is_scalar(source)
        ):
            before[node] = source
        elif node.target in _ELEMENTWISE and not node.kwargs:
            _compute_from(node, [before.get(operand, operand) for operand in node.args], before)


def _compute_from(node: fx.Node, operands: list[object], before: dict[object, fx.Node]) -> None:
    """Insert a node's operation on the operands before they were expanded, where that comes to the same."""
    if operands == list(node.args):
        return
    result, tensors = _like(node), [_like(operand) for operand in operands if isinstance(operand, fx.Node)]
    known = [tensor for tensor in tensors if tensor is not None]
    # tensors without dimensions count less when torch chooses the dtype of a result
    if result is None or len(known) < len(tensors) or any(x.dtype != result.dtype for x in known):
        return
    made = instead(node, cast(Any, node.target), *operands)
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in known))
    if shape == result.shape:
        if _laid_out(made) == result.stride():  # whoever comes next may count on it
            replace(node, made)
    else:
        made.meta["val"] = result.new_empty(shape)
        before[node] = made


def _laid_out(node: fx.Node) -> tuple[int, ...]:
    """The strides of an operation's result."""

    def stand_in(argument: fx.Node) -> Tensor:
        like = argument.meta["val"]
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")

    args = fx.node.map_arg(node.args, stand_in)
    made: Tensor = cast(Any, node.target)(*args)
    return made.stride()


def _is_scalar(node: fx.Node) -> bool:
    like = _like(node)
    return like is not None and like.dim() == 0


def _like(node: object) -> Tensor | None:
    """What a node's result looks like, if that is known."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None
