"""Each shortcut on the smallest graph that needs it; the pairs are in test_engines."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae.svi.shortcuts import take_shortcuts
from tests.svi.test_simplification import operations

aten = torch.ops.aten
X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
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
    "over all, to one": lambda x: aten.view(x.sum([0, 1], True), [1]),
    "entropies that are weighted": lambda x: binary_cross_entropy_with_logits(
        x, x, ROW, reduction="none"
    ).sum(),
    "the mean entropy": lambda x: aten.binary_cross_entropy_with_logits(x, x, None, None, 1).sum(),
    "the entropies of each row": lambda x: binary_cross_entropy_with_logits(x, x, reduction="none").sum(-1),
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


def test_a_sum_of_negatives_is_the_negative_of_a_sum() -> None:
    graph = shortened(lambda x: x.exp().neg().sum(), X)
    assert operations(graph) == ["aten.exp.default", "aten.sum.default", "aten.neg.default"]
    torch.testing.assert_close(graph(X), -X.exp().sum(), rtol=0, atol=0)


def entropy_and_gradient(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return aten.binary_cross_entropy_with_logits(x, t, None, None, 0).sum(), torch.sigmoid(x) - t


def test_cross_entropies_share_the_sigmoid_of_their_gradient() -> None:
    target = X.sigmoid().t().contiguous().t()
    graph = shortened(entropy_and_gradient, X, target)
    assert operations(graph).count("aten.sigmoid.default") == 1
    assert "aten.binary_cross_entropy_with_logits.default" not in operations(graph)
    for a, b in zip(graph(X, target), entropy_and_gradient(X, target), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropies_of_certain_logits(dtype: torch.dtype) -> None:
    """Where σ is 0 or 1 to the last bit, right and wrong; NaN stays NaN."""
    x = torch.tensor([-1e4, -800.0, -40.0, -17.0, 0.0, 17.0, 40.0, 800.0, 1e4], dtype=dtype)
    for target in (torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, 0.25)):
        graph = shortened(entropy_and_gradient, x, target)
        for i in range(len(x)):
            one = x[i].expand(len(x)).contiguous()
            given, wanted = graph(one, target)[0], entropy_and_gradient(one, target)[0]
            torch.testing.assert_close(given, wanted, rtol=1e-6, atol=1e-6)
        x[4] = torch.nan
        assert bool(graph(x, target)[0].isnan())
        x[4] = 0.0


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
