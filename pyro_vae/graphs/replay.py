"""Replay of a captured graph by torch's own functions.

An operator of ``torch.ops`` checks its arguments against a schema at every call; the function of torch that
has the same name was generated for them, and is about a microsecond faster. A small pair's graph has some
eighty operators and takes a few hundred microseconds, so this is a quarter of it. Both end in the same
kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from pyro_vae.graphs.any_rows import follow_rows
from pyro_vae.graphs.shortcuts import take_shortcuts

aten = torch.ops.aten

_SAME_NAME = (
    "abs.default add.Scalar add.Tensor addmm.default binary_cross_entropy_with_logits.default bmm.default "
    "cat.default clamp.default digamma.default div.Scalar div.Tensor eq.Scalar eq.Tensor erf.default "
    "exp.default expm1.default ge.Scalar gt.Scalar le.Scalar lgamma.default log.default log1p.default "
    "lt.Scalar mm.default mul.Scalar mul.Tensor neg.default permute.default pow.Tensor_Scalar "
    "randn.default relu.default rsub.Scalar select.int sigmoid.default sqrt.default squeeze.dim "
    "stack.default sub.Scalar sub.Tensor sum.default sum.dim_IntList t.default tanh.default transpose.int "
    "unsqueeze.default where.self"
)
_METHODS = "expand.default"
_WITH_A_NUMBER: dict[Any, Any] = {
    aten.add.Scalar: aten.add.Tensor,
    aten.add.Tensor: aten.add.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.rsub.Scalar: aten.sub.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
}
_PLAIN_FLOATS = (torch.float32, torch.float64)
"""In which a number is rounded before it is computed with, too."""
_ALPHA_BY_POSITION = (aten.add.Scalar, aten.rsub.Scalar, aten.sub.Scalar)
"""Operators that take a third argument by its position, as their functions do not."""


def _operator(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _operator(name): getattr(home, name.split(".")[0])
    for home, names in ((torch, _SAME_NAME), (Tensor, _METHODS))
    for name in names.split()
}
_FUNCTIONS |= {aten.view.default: Tensor.reshape, aten._unsafe_view.default: Tensor.reshape}
"""A view of what a cheaper operation laid out differently is a copy."""


def make_replay(graph: fx.GraphModule, rows: int | None = None) -> Callable[..., Sequence[Tensor]]:
    """The Python code of a graph, with a function of torch for every operator that has one.

    The graph stays what it is, and the tensors that it holds are shared. One that was traced with so many
    ``rows`` takes any number, which is that of its first input: see
    :func:`~pyro_vae.graphs.any_rows.follow_rows`.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> x = torch.tensor([1.0, 2.0])
    >>> make_replay(make_fx(lambda x: (x + 1) * 2)(x))(x)
    tensor([4., 6.])
    """
    own = take_shortcuts(graph)
    if rows is not None:
        follow_rows(own, next(iter(own.graph.nodes)), rows)
    constants = _take_constants_out(own)
    for node in own.graph.nodes:
        if node.op == "call_function" and _fits_its_function(node):
            node.target = _FUNCTIONS.get(node.target, node.target)
    own.recompile()
    _LazyGraphModule.force_recompile(own)
    return functools.partial(own.forward, *constants)


def _take_constants_out(graph: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds, and the numbers that it computes with, into leading inputs, and
    return them in order: a number would be made a tensor at every step, and modules are slow to look up
    theirs."""
    start = next(iter(graph.graph.nodes))
    constants: list[Tensor] = []

    def made_input(value: Tensor) -> fx.Node:
        constants.append(value)
        with graph.graph.inserting_before(start):
            node: fx.Node = graph.graph.placeholder(f"constant_{len(constants)}")
        return node

    numbers: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            node.replace_all_uses_with(made_input(getattr(graph, str(node.target))))
            graph.graph.erase_node(node)
        elif _computes_with_a_number(node):
            tensor, number = node.args
            dtype = node.meta["val"].dtype
            key = str(number), dtype  # 0.0 == -0.0
            if key not in numbers:
                numbers[key] = made_input(torch.tensor(number, dtype=dtype, device="cpu"))
            operands = tensor, numbers[key]
            node.args = operands[::-1] if node.target is aten.rsub.Scalar else operands
            node.target = _WITH_A_NUMBER[node.target]
    return constants


def _computes_with_a_number(node: fx.Node) -> bool:
    if node.target not in _WITH_A_NUMBER or len(node.args) != 2 or node.kwargs:
        return False
    tensor, number = node.args
    if not isinstance(tensor, fx.Node) or not isinstance(number, int | float):
        return False
    like, result = tensor.meta.get("val"), node.meta.get("val")
    if not isinstance(like, Tensor) or not isinstance(result, Tensor):
        return False
    return like.dtype == result.dtype and like.device.type == "cpu" and like.dtype in _PLAIN_FLOATS


def _fits_its_function(node: fx.Node) -> bool:
    """Functions refuse a number in the place of their first tensor, and other arguments by position."""
    if node.target in _ALPHA_BY_POSITION and len(node.args) > 2:
        return False
    return not isinstance(node.args[0] if node.args else None, int | float)
