"""A graph for any number of rows, made of one for a certain number.

Shapes are frozen where a function is traced. Traced with a number of rows that is no other size of the
program, a prime, every size that is a multiple of it follows the rows.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.graphs.rewriting import CONSTANT, instead, replace

ROWS = (509, 251, 113, 61, 31, 13)
"""Primes, to trace with; none divides 2⁶³ − 1, the end of a slice that has none."""


class FixedRowsError(ValueError):
    """A graph holds a tensor that has the rows, and that cannot be made of one of them."""


def follow_rows(graph: fx.GraphModule, source: fx.Node, rows: int) -> None:
    """Rewrite a graph, traced with so many rows, in place: they are as many as ``source`` has.

    The tensors that it holds may have the rows, too, if these are all alike; raises FixedRowsError else.

    Examples
    --------
    >>> from pyro_vae.graphs.tracing import capture
    >>> graph = capture(lambda x: (x.reshape(13, 1).expand(13, 2).sum(-1),), [torch.ones(13)])
    >>> follow_rows(graph, next(iter(graph.graph.nodes)), 13)
    >>> graph.recompile()
    ...
    >>> graph(torch.arange(2.0))[0]
    tensor([0., 2.])
    """
    nodes = list(graph.graph.nodes)
    with graph.graph.inserting_before(next(node for node in nodes if node.op != "placeholder")):
        count = graph.graph.call_function(len, (source,))

    def sized(size: Any) -> Any:
        if type(size) is not int or size < rows or size % rows:
            return size
        if size == rows:
            return count
        with graph.graph.inserting_after(count):
            return graph.graph.call_function(operator.mul, (count, size // rows))

    for node in nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, sized)
            node.kwargs = fx.node.map_aggregate(node.kwargs, sized)
        elif node.op == "get_attr":
            _repeat_one_row(graph, node, rows, sized)


def _repeat_one_row(graph: fx.GraphModule, node: fx.Node, rows: int, sized: Callable[[Any], Any]) -> None:
    """Expand one row of a constant with rows in place of the constant."""
    constant: Tensor = getattr(graph, str(node.target))
    one = constant
    for dim, size in enumerate(constant.shape):
        if size >= rows and size % rows == 0:
            one = one.narrow(dim, 0, 1)
    if one is constant:
        return
    if not str(node.target).startswith(CONSTANT) or not torch.equal(one.expand_as(constant), constant):
        raise FixedRowsError(f"{node.target} has rows of its own")
    graph.register_buffer(f"{node.target}_row", one, persistent=False)
    with graph.graph.inserting_before(node):
        row = graph.graph.get_attr(f"{node.target}_row")
    many = instead(node, torch.Tensor.expand, row, [sized(size) for size in constant.shape])
    replace(node, many)
