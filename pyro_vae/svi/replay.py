"""Replay of a captured graph by torch's own functions.

An operator of ``torch.ops`` checks its arguments against a schema at every call; the function of torch that
has the same name was generated for them, and is about a microsecond faster. A graph of a small pair has some
eighty operators and takes a few hundred microseconds, so this is a quarter of it. Nothing is computed
otherwise: both end in the same kernel.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Replay", "make_replay"]

Replay = Callable[..., Sequence[Tensor]]
"""``replay(*parameters, kl_weight, *batch)``: loss, KL, reconstruction and gradients."""

aten = torch.ops.aten

_SAME_NAME = (
    "abs.default add.Scalar add.Tensor addmm.default binary_cross_entropy_with_logits.default bmm.default "
    "cat.default clamp.default digamma.default div.Scalar div.Tensor eq.Scalar eq.Tensor erf.default "
    "exp.default expm1.default ge.Scalar gt.Scalar le.Scalar lgamma.default log.default log1p.default "
    "lt.Scalar mm.default mul.Scalar mul.Tensor neg.default permute.default pow.Tensor_Scalar randn.default "
    "relu.default rsub.Scalar select.int sigmoid.default sqrt.default squeeze.dim stack.default sub.Scalar "
    "sub.Tensor sum.default sum.dim_IntList t.default tanh.default transpose.int unsqueeze.default where.self"
)
_METHODS = "expand.default view.default"
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


def make_replay(graph: fx.GraphModule) -> Replay:
    """The Python code of a graph, with a function of torch for every operator that has one.

    The graph stays what it is, and the tensors that it holds are shared.

    Examples
    --------
    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> x = torch.tensor([1.0, 2.0])
    >>> make_replay(make_fx(lambda x: (x + 1) * 2)(x))(x)
    tensor([4., 6.])
    """
    own = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in own.graph.nodes:
        if node.op == "call_function" and _fits_its_function(node):
            node.target = _FUNCTIONS.get(node.target, node.target)
    own.recompile()
    step: Replay = own.forward
    return step


def _fits_its_function(node: fx.Node) -> bool:
    """Functions refuse a number in the place of their first tensor, and other arguments by position."""
    if node.target in _ALPHA_BY_POSITION and len(node.args) > 2:
        return False
    return not isinstance(node.args[0] if node.args else None, int | float)
