"""Each rule of the clean-up on the smallest graph that needs it; the pairs are in test_engines."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.simplification import simplify
from tests import seeds

aten = torch.ops.aten
X = torch.randn(4, 3, dtype=torch.float64, generator=seeds.generator(0))


def operations(graph: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def simplified(function: Callable[..., object], *args: Tensor) -> fx.GraphModule:
    return simplify(make_fx(function)(*args))


NOTHING_LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "view of the same shape": lambda x: x.view(4, 3),
    "expand to the same shape": lambda x: x.expand(4, -1),
    "transpose of a transpose": lambda x: aten.t(aten.t(x)),
    "negative of a negative": lambda x: x.neg().neg(),
    "times 1": lambda x: x * 1.0,
    "1 times": lambda x: 1.0 * x,
    "times ones": lambda x: x * torch.ones(4, 3),
    "ones of its shape times": lambda x: torch.ones_like(x) * x,
    "over 1": lambda x: x / 1,
    "over ones": lambda x: x / torch.ones_like(x),
    "first power": lambda x: x**1.0,
    "plus 0": lambda x: x + 0,
    "minus 0": lambda x: x - 0.0,
    "plus zeros": lambda x: x + torch.zeros_like(x),
    "zeros plus": lambda x: torch.zeros_like(x) + x,
    "copied over": lambda x: aten.copy(torch.empty(4, 3, dtype=torch.float64), x),
    "joined alone": lambda x: torch.cat([x], 1),
    "split into one": lambda x: x.split([3], -1)[0],
    "all of them": lambda x: ((x * 1.0).view(4, 3).t().t() ** 1 + 0.0).neg().neg() / 1,
}


@pytest.mark.parametrize("name", NOTHING_LEFT)
def test_what_computes_nothing_is_gone(name: str) -> None:
    graph = simplified(lambda x: NOTHING_LEFT[name](x).exp(), X)
    assert operations(graph) == ["aten.exp.default"]
    torch.testing.assert_close(graph(X), X.exp(), rtol=0, atol=0)


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "another shape": lambda x: x.view(3, 4),
    "one transpose": lambda x: x.t(),
    "another dtype": lambda x: x.float() * torch.ones(4, 3, dtype=torch.float64),
    "broadcasting": lambda x: x.sum() * torch.ones(4, 3),
    "times 2": lambda x: x * 2,
    "from 0": lambda x: 0 - x,
    "1 over": lambda x: 1 / x,
    "joined twice": lambda x: torch.cat([x, x]),
    "sum of some": lambda x: x.sum(-1).exp().sum(),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_computes_something_stays(name: str) -> None:
    function = KEPT[name]
    graph = simplified(lambda x: function(x).exp(), X)
    assert len(operations(graph)) > 1
    torch.testing.assert_close(graph(X), function(X).exp(), rtol=1e-15, atol=0)
    assert graph(X).dtype == function(X).dtype


def test_a_sum_of_sums_is_one_sum() -> None:
    graph = simplified(lambda x: x.sum(-1).sum(), X)
    assert operations(graph) == ["aten.sum.default"]
    torch.testing.assert_close(graph(X), X.sum())


def test_what_is_computed_twice_is_computed_once() -> None:
    graph = simplified(lambda x: x.exp().sin() + x.exp().sin(), X)
    assert operations(graph) == ["aten.exp.default", "aten.sin.default", "aten.add.Tensor"]


def test_draws_are_never_merged() -> None:
    graph = simplified(lambda x: torch.randn(4, 3) - torch.randn(4, 3) + x, X)
    assert operations(graph).count("aten.randn.default") == 2
    assert float(graph(X).sub(X).abs().min()) > 0


def test_a_draw_that_nobody_uses_still_moves_the_stream() -> None:
    def function(x: Tensor) -> Tensor:
        torch.randn(3)
        return x + torch.randn(4, 3)

    torch.manual_seed(0)
    wanted = function(X)
    torch.manual_seed(0)
    graph = make_fx(function)(X)
    torch.manual_seed(0)
    torch.testing.assert_close(simplify(graph)(X), wanted, rtol=0, atol=0)


def test_constants_are_computed_once() -> None:
    graph = simplified(lambda x: x * torch.arange(3.0).exp().log1p(), X)
    assert operations(graph) == ["aten.mul.Tensor"]


def test_tensors_that_may_change_are_no_constants() -> None:
    live = torch.ones(3)
    graph = simplify(make_fx(lambda x: x * live.exp(), _allow_non_fake_inputs=True)(X))
    live.mul_(2)
    torch.testing.assert_close(graph(X), X * live.exp())


def test_a_constant_that_is_put_out_is_new_at_every_call() -> None:
    graph = simplified(lambda x: (x.exp(), torch.zeros_like(x)), X)
    graph(X)[1].add_(1)
    assert float(graph(X)[1].sum()) == 0


def test_graphs_that_change_tensors_in_place_are_left_alone() -> None:
    buffer = torch.zeros(3)

    def function(x: Tensor) -> Tensor:
        before = buffer.exp()
        buffer.add_(1.0)
        return x * 1.0 + before + buffer.exp()

    graph = make_fx(function, _allow_non_fake_inputs=True)(X)
    before = operations(graph)
    assert operations(simplify(graph)) == before


def test_tensors_that_the_graph_made_may_be_filled_in_place() -> None:
    def function(x: Tensor) -> Tensor:
        one, two = torch.empty(4, 3).normal_(), torch.empty(4, 3).normal_()
        return (x * 1.0 + one - two) * 1.0

    graph = simplified(function, X)
    assert operations(graph) == [
        "aten.randn.default",
        "aten.randn.default",
        "aten.add.Tensor",
        "aten.sub.Tensor",
    ]
    torch.manual_seed(0)
    wanted = function(X)
    torch.manual_seed(0)
    torch.testing.assert_close(graph(X), wanted, rtol=0, atol=0)
    assert not torch.equal(wanted, X)
