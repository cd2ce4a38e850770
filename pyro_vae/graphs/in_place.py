"""In-place operations of a graph on tensors that it made itself, as operations that make a new one.

``relu_``, ``clamp``'s own gradient, sums that are added up, ``knots[..., 0] = lower``: they change a tensor
that nobody outside sees. Written as new tensors, the order of reading and writing no longer counts, and the
graph can be simplified.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.graphs.rewriting import as_node

aten = torch.ops.aten
SCATTERED: dict[Any, Any] = {
    aten.as_strided.default: aten.as_strided_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
}
"""For a view of a part, the operation that makes the whole with another part."""


def works_in_place(node: fx.Node) -> bool:
    """Whether an operation changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def without_own_mutations(graph: fx.GraphModule) -> None:
    """Rewrite, in place, what can be: the tensor is an operation's new result or a part of it, and nothing
    shows its memory.

    Draws stay: they fill memory that was made for them.
    """
    position = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not works_in_place(node):
            continue
        changed, functional = node.args[0] if node.args else None, _functional(node.target)
        if functional is None or not isinstance(changed, fx.Node):
            continue
        parts = _parts(changed)
        whole = as_node(parts[-1].args[0]) if parts else changed
        if whole is None or not _is_own(whole) or _is_shown(whole, node, position, parts):
            continue
        if not (whole.meta["val"].is_contiguous() if parts else _lays_out_alike(functional, node)):
            continue
        node.target = functional
        after = position[node]
        now = _with_other_part(node, parts, position)
        for user in [user for user in whole.users if position[user] > after]:
            user.replace_input_with(whole, now)


def _parts(view: fx.Node) -> list[fx.Node]:
    """The views that lead from a part to the whole that it is a part of."""
    found: list[fx.Node] = []
    while (inner := as_node(view.args[0]) if view.args else None) and view.target in SCATTERED:
        found.append(view)
        view = inner
    return found


def _with_other_part(node: fx.Node, parts: list[fx.Node], position: dict[fx.Node, int]) -> fx.Node:
    """The whole, once a node has taken the place of its part."""
    now = node
    for part in parts:
        before = as_node(part.args[0])
        assert before is not None
        with node.graph.inserting_before(now.next):
            args = before, now, *part.args[1:]
            made = node.graph.call_function(SCATTERED[part.target], args, part.kwargs)
        made.meta, position[made], now = dict(before.meta), position[node], made
    return now


def _functional(target: Any) -> Any:
    """The operation that makes a new tensor, with the same arguments."""
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    made = getattr(packet, target._overloadname, None)
    if made is None or made._schema.is_mutable:
        return None
    mine, theirs = target._schema.arguments, made._schema.arguments
    return made if [a.name for a in mine] == [a.name for a in theirs] else None


def _is_own(node: fx.Node) -> bool:
    """Whether a node's result is new memory."""
    return node.op == "call_function" and not _shows_another(node)


def _shows_another(node: fx.Node) -> bool:
    if node.target is operator.getitem:  # one of several results, as of native_layer_norm
        several, which = node.args
        assert isinstance(several, fx.Node)
        again = [user for user in several.users if user.args[1:] == (which,)]
        return len(again) > 1 or _shows_another(several)
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(value.alias_info is not None for value in schema.returns)


def _is_shown(changed: fx.Node, by: fx.Node, position: dict[fx.Node, int], parts: list[fx.Node]) -> bool:
    """Whether a view of a tensor that is changed is still looked at afterwards: other than the part that is
    changed, by the change itself."""
    if parts and by.users:
        return True
    for user in changed.users:
        if user is by or user.op != "call_function" or not _shows_another(user):
            continue
        if position[user] < position[by] and (
            works_in_place(user) or _is_used_after(user, by, position, parts)
        ):
            return True
    return False


def _is_used_after(view: fx.Node, by: fx.Node, position: dict[fx.Node, int], parts: list[fx.Node]) -> bool:
    for user in view.users:
        if user is by and view in parts[:1]:
            continue
        if user is by or position[user] > position[by]:
            return True
        if user.op == "call_function" and _shows_another(user) and _is_used_after(user, by, position, parts):
            return True
    return False


def _lays_out_alike(functional: Any, node: fx.Node) -> bool:
    """Whether the new tensor would have the strides of the one that is changed."""

    def stand_in(argument: fx.Node) -> Tensor:
        like = argument.meta["val"]
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")

    try:
        made = functional(*fx.map_arg(node.args, stand_in), **fx.map_arg(node.kwargs, stand_in))
    except (RuntimeError, NotImplementedError, KeyError, AttributeError):
        return False
    before = node.meta["val"]
    same: bool = (made.shape, made.stride(), made.dtype) == (before.shape, before.stride(), before.dtype)
    return same
