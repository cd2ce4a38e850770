"""Rewrite a graph node by node, by rules that ask something of its nodes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
CONSTANT = "_constant_of_the_step_"
"""What the names of constants begin with that are computed once for all steps."""
_BY_MEMORY = (aten.as_strided.default, aten.as_strided_scatter.default)

Rule = Callable[[fx.GraphModule, fx.Node], fx.Node | None]
"""The node that can stand in for another one, or None."""


def apply_rules(graph: fx.GraphModule, rules: Iterable[Rule]) -> bool:
    """One pass of the rules; whether any of them applied."""
    changed = False
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or any(user.target in _BY_MEMORY for user in node.users):
            continue  # they would count from the beginning of other memory
        stand_in = next((found for rule in rules if (found := rule(graph, node)) is not None), None)
        if stand_in is not None:
            replace(node, stand_in)
            changed = True
    return changed


def replace(node: fx.Node, stand_in: fx.Node) -> None:
    node.replace_all_uses_with(stand_in)
    node.graph.erase_node(node)


def instead(node: fx.Node, target: Callable[..., object], *args: Any) -> fx.Node:
    """A new node right before another one, whose result looks like that one's."""
    with node.graph.inserting_before(node):
        made: fx.Node = node.graph.call_function(target, args)
    made.meta = dict(node.meta)
    return made


def first(node: fx.Node) -> fx.Node | None:
    return as_node(node.args[0]) if node.args else None


def as_node(argument: object) -> fx.Node | None:
    return argument if isinstance(argument, fx.Node) else None


def looks_like_its_argument(node: fx.Node) -> bool:
    return looks_like(node, node.args[0])


def looks_like(node: fx.Node, argument: object) -> bool:
    """Equal shape, strides and dtype: nobody can tell the two apart by more than their values."""
    if not isinstance(argument, fx.Node):
        return False
    given, result = argument.meta.get("val"), node.meta.get("val")
    if not (isinstance(given, Tensor) and isinstance(result, Tensor)):
        return False
    same: bool = (
        given.shape == result.shape and given.stride() == result.stride() and given.dtype == result.dtype
    )
    return same


def made_constant(node: fx.Node, graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """A tensor that the graph holds from now on, for use at a node."""
    graph.register_buffer(f"{CONSTANT}{name}", value, persistent=False)
    with graph.graph.inserting_before(node):
        constant: fx.Node = graph.graph.get_attr(f"{CONSTANT}{name}")
    constant.meta["val"] = value
    return constant


def one_value(graph: fx.GraphModule, argument: object) -> float | None:
    """The number that an operand is, or that a constant has everywhere."""
    if isinstance(argument, int | float):
        return argument
    if isinstance(argument, fx.Node) and str(argument.target).startswith(CONSTANT):
        constant: Tensor = getattr(graph, str(argument.target))
        if constant.numel():
            value: float = constant.flatten()[0].item()
            return value if bool(constant.eq(value).all()) else None
    return None
