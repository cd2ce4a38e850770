import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.engines.native.formulas import FORMULAS
from pyro_vae.svi.engines.native.lowering import lower
from pyro_vae.svi.engines.steps import CannotError
from tests.svi.engines.native.cases import needs_compiler

X = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(4, 6)
ONE = torch.ones((), dtype=torch.float64)


def graph_of(function: Callable[..., Any], parameters: list[Tensor], x: Tensor = X) -> fx.GraphModule:
    graph: fx.GraphModule = make_fx(function, _allow_non_fake_inputs=True)(*parameters, ONE, x)
    return graph


def gradients(function: Callable[..., Any], parameters: list[Tensor]) -> list[Tensor]:
    """What the generated function computes: with beta1 = 0, Adam's first moment is the gradient."""
    optimizer = torch.optim.Adam(parameters, betas=(0.0, 0.9))
    steps = NativeFunction(graph_of(function, parameters), parameters, (X,), optimizer)
    given = steps.run((X,), torch.arange(4).unsqueeze(0), torch.ones(1))
    assert not bool(given.bad[0])
    return [optimizer.state[p]["exp_avg"] for p in parameters]


def shaped(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


@needs_compiler
def test_choices_along_an_axis() -> None:
    """The largest and where it is, what an index names, and shares: along every axis."""

    def function(a: Tensor, b: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        top, where = a.max(1)
        named = b.gather(0, b.max(0, keepdim=True)[1])
        some = a.gather(2, where[:, :2, None].clamp(max=2) + 0)
        into = torch.ops.aten.scatter_add.default(a, 1, where.unsqueeze(1), top.unsqueeze(1))
        none = torch.zeros_like(b).scatter_add(0, b.max(0, keepdim=True)[1], named)
        return (
            (w * x.sum()).squeeze(),
            named.sum() + some.sum(),
            top.sum() + where.sum(),
            into + a.softmax(2) + a.log_softmax(0),
            none + (3 * b).long(),
        )

    parameters = [shaped(2, 3, 4), shaped(5, 2)]
    wanted = function(*[p.clone() for p in parameters], ONE, X)[3:]
    for given, value in zip(gradients(function, parameters), wanted, strict=True):
        torch.testing.assert_close(given, value)


@needs_compiler
@pytest.mark.parametrize("place", [-1.0, 4.0])
def test_an_index_that_names_nothing_makes_the_step_one_that_is_not_finite(place: float) -> None:
    def function(a: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        named = a.gather(1, x[:, :1].long())
        return (w * named.sum()).squeeze(), named.sum(), named.sum(), a + named.sum()

    parameters, x = [shaped(4, 4)], torch.zeros(4, 2, dtype=torch.float64)
    steps = NativeFunction(graph_of(function, parameters, x), parameters, (x,), torch.optim.Adam(parameters))
    assert not bool(steps.run((x,), torch.arange(4).unsqueeze(0), torch.ones(1)).bad[0])
    x[2, 0] = place
    assert bool(steps.run((x,), torch.arange(4).unsqueeze(0), torch.ones(1)).bad[0])


@needs_compiler
def test_layouts_broadcasts_sums_and_slices() -> None:
    """Views of views, sums along every axis, slices and their backwards, products of transposes."""

    def function(a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        cube = a.reshape(2, 3, 4) * d[:4] + b.unsqueeze(0)
        wide = cube.transpose(0, 2).expand(4, 3, 2)
        rows = torch.cat([wide.sum(0), wide.mean((0,)), cube.sum((0, 2), keepdim=True).reshape(3, 1)], 1)
        halves = torch.stack(rows.split([2, 3], 1)[1].unbind(1))
        square = (x.t() @ x)[1:5, ::2] @ halves
        return (
            (w * x.sum()).squeeze(),
            d[1:4].exp().sum() + square.sum(),
            x.sum(1).sum(0) + x.mean(),
            cube.permute(2, 0, 1).reshape(6, 4) + square.sum() + a.sum(0, keepdim=True),
            torch.where(b > 1, b, 2.0 * cube.sum(0)),
            square.sum(1)[:3].unsqueeze(1) + c @ c.t() @ c,
            torch.ops.aten.slice_backward(d[1:4] ** 3, [5], 0, 1, 4, 1) + d.pow(-0.5) + d.pow(1.7),
        )

    parameters = [shaped(6, 4), shaped(3, 4), shaped(3, 5), shaped(5)]
    wanted = function(*[p.clone() for p in parameters], ONE, X)[3:]
    for given, value in zip(gradients(function, parameters), wanted, strict=True):
        torch.testing.assert_close(given, value, rtol=1e-12, atol=1e-12)


REFUSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "aten.digamma.default": lambda p, w, x: p.digamma(),
    "aten.cumsum.default": lambda p, w, x: p.cumsum(0),
    "aten.bernoulli.p": lambda p, w, x: torch.bernoulli(p, 0.5),
    "aten.gelu.default with approximate=tanh": lambda p, w, x: torch.nn.functional.gelu(
        p, approximate="tanh"
    ),
    "aten.add_.Tensor, which changes a tensor in place": lambda p, w, x: x.add_(1.0).sum() + p,
    "aten._to_copy.default to torch.float32": lambda p, w, x: p.float().double(),
    "aten.sum of truth values": lambda p, w, x: (p > 0).sum() * p,
    "aten.arange.default": lambda p, w, x: p * torch.arange(3),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_known_is_refused_by_name(reason: str) -> None:
    def function(p: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return w, w, w, REFUSED[reason](p, w, x)

    parameters = [shaped(3)]
    graph = graph_of(function, parameters, X.clone())
    with pytest.raises(CannotError, match=re.escape(reason)):
        lower(graph, parameters, (X,))


@pytest.mark.parametrize(
    ("parameters", "batch", "reason"),
    [
        ([shaped(3).half()], X, "float16"),
        ([shaped(3, 2).t()], X, "parameter 0, which is not contiguous"),
        ([shaped(3)], X.float(), r"batch\[0\] of dtype torch.float32"),
        ([shaped(3)], X.to(torch.int16), r"batch\[0\] of dtype torch.int16"),
        ([shaped(3)], X[:0], "without rows"),
    ],
)
def test_inputs_of_other_kinds_are_refused(parameters: list[Tensor], batch: Tensor, reason: str) -> None:
    graph = graph_of(lambda p, w, x: (w, w, w, p * 1.0), parameters, X)
    with pytest.raises(CannotError, match=reason):
        lower(graph, parameters, (batch,))


def test_formulas_name_arguments_that_their_operation_has() -> None:
    for name, formula in FORMULAS.items():
        _, word, overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, word), overload)._schema
        assert set(re.findall(r"\{(\w+)\}", formula)) <= {argument.name for argument in schema.arguments}, (
            name
        )


def test_equal_operations_run_once_and_unused_ones_never() -> None:
    def function(p: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        p.exp()
        return w, w, w, p.tanh() + p.tanh()

    graph = graph_of(function, [shaped(3)])
    formulas = [getattr(op, "formula", "") for op in lower(graph, [shaped(3)], (X,)).operations]
    assert [f for f in formulas if "math" in f] == ["math::tanh({0})"]
