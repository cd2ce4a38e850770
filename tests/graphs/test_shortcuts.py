"""Each shortcut on the smallest graph that needs it; the pairs are in test_engines."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.shortcuts import take_shortcuts
from tests import seeds
from tests.graphs.test_simplification import operations

aten = torch.ops.aten
X = torch.randn(4, 3, dtype=torch.float64, generator=seeds.generator(0))
ROW = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def shortened(function: Callable[..., object], *args: Tensor) -> fx.GraphModule:
    return take_shortcuts(make_fx(function)(*args))


def test_a_kept_dimension_that_a_view_takes_away_is_not_kept() -> None:
    graph = shortened(lambda x: aten.view(x.sum([0], keepdim=True), [3]), X)
    assert operations(graph) == ["aten.sum.dim_IntList"]
    torch.testing.assert_close(graph(X), X.sum(0), rtol=0, atol=0)


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "another view": lambda x: aten.view(x.sum([0], keepdim=True), [3, 1]),
    "used twice": lambda x: (lambda kept: kept.exp() + aten.view(kept, [3]))(x.sum([0], True)),
    "another dtype": lambda x: aten.view(x.sum([0], True, dtype=torch.float32), [3]),
    "of a number": lambda x: aten.view(x[0, 0].sum([0], True), []).exp(),
    "over all, to one": lambda x: aten.view(x.sum([0, 1], True), [1]),
    "expanded before it is summed": lambda x: ROW.expand(4, 3).exp().sum() * x,
    "expanded before it is put out": lambda x: x.sum(0).expand(4, 3).exp(),
    "expanded to a higher rank": lambda x: x.sum().expand(2) * x.sum().float(),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_has_no_shortcut_stays(name: str) -> None:
    graph = make_fx(KEPT[name])(X)
    short = take_shortcuts(graph)
    assert sorted(set(operations(short))) == sorted(set(operations(graph)))
    given, wanted = short(X), graph(X)
    torch.testing.assert_close(given, wanted, rtol=0, atol=0)
    assert given.stride() == wanted.stride()


def test_constants_are_computed_with_before_they_are_expanded() -> None:
    def function(x: Tensor, row: Tensor, weight: Tensor) -> Tensor:
        scale, weights = row.expand(4, 3), weight.expand(4).unsqueeze(-1).expand(4, 3) * 0.5
        return (x - scale) / scale - scale.log() * weights

    graph = shortened(function, X, ROW, torch.tensor(0.1, dtype=torch.float64))
    assert not {"aten.expand.default", "aten.unsqueeze.default"} & set(operations(graph))
    for weight in (0.1, 3.0):
        given = graph(X, ROW, torch.tensor(weight, dtype=torch.float64))
        wanted = function(X, ROW, torch.tensor(weight, dtype=torch.float64))
        torch.testing.assert_close(given, wanted, rtol=1e-15, atol=1e-15)
        assert given.stride() == wanted.stride()


def test_a_number_of_another_dtype_stays_expanded() -> None:
    """float32 times one float64 is float32, times an expanded one float64."""
    graph = shortened(lambda x, y: x * y.expand(4, 3), X.float(), ROW.sum())
    assert graph(X.float(), ROW.sum()).dtype == torch.float64


def test_graphs_that_change_tensors_in_place_are_left_alone() -> None:
    buffer = torch.zeros(3)

    def function(x: Tensor) -> Tensor:
        before = buffer.exp().neg().sum()
        buffer.add_(1.0)
        return x + before

    graph = make_fx(function, _allow_non_fake_inputs=True)(X)
    assert operations(take_shortcuts(graph)) == operations(graph)
    assert take_shortcuts(graph) is not graph
