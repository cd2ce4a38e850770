"""What replays a graph gives its numbers to the bit; the pairs are in test_engines."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.replay import make_replay
from tests import seeds

aten = torch.ops.aten
X = torch.randn(4, 3, dtype=torch.float64, generator=seeds.generator(0))

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "functions of one tensor": lambda x: x.exp().log1p().sigmoid().tanh().neg().expm1().abs().sqrt().log(),
    "arithmetic with tensors": lambda x: (x + x.exp()) * x / x.exp() - x,
    "arithmetic with numbers": lambda x: (x * 2 + 1) / 3 - 4,
    "a number first": lambda x: aten.mul.Tensor(2.0, x) + (1 - x),
    "multiples by name": lambda x: torch.add(x, x, alpha=2) - torch.sub(x, x, alpha=3),
    "multiples by position": lambda x: aten.add.Scalar(x, 1, 2) + aten.rsub.Scalar(x, 1, 3),
    "sums": lambda x: x.sum(0, keepdim=True) + x.sum(-1, True) + x.sum(dtype=torch.float32),
    "views": lambda x: x.t().unsqueeze(0).expand(2, 3, 4).transpose(0, 1).select(0, 1).contiguous().view(8),
    "products": lambda x: torch.addmm(x[0], x @ x.t(), x, beta=0.5, alpha=2) ** 2,
    "choices": lambda x: torch.where(x > 0, x.clamp(max=1), torch.zeros(())) + x.clamp(0.1, 0.2),
    "joins": lambda x: torch.cat([x, torch.stack([x[0], x[1]])], 0),
    "what has no function": lambda x: aten.threshold_backward(x, x, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_replay_has_the_graphs_numbers(name: str) -> None:
    graph = make_fx(CASES[name])(X)
    given = make_replay(graph)(X)
    torch.testing.assert_close(given, graph(X), rtol=0, atol=0)
    assert given.stride() == graph(X).stride()


def test_draws_come_from_the_same_stream() -> None:
    graph = make_fx(lambda x: x + torch.randn(4, 3, dtype=torch.float32))(X)
    torch.manual_seed(0)
    wanted = graph(X)
    torch.manual_seed(0)
    torch.testing.assert_close(make_replay(graph)(X), wanted, rtol=0, atol=0)


def test_tensors_are_shared_and_the_graph_stays_what_it_is() -> None:
    live = torch.ones(3, dtype=torch.float64)
    graph = make_fx(lambda x: x * live.exp(), _allow_non_fake_inputs=True)(X)
    before = [node.target for node in graph.graph.nodes]
    step = make_replay(graph)
    live.mul_(2)
    torch.testing.assert_close(step(X), X * live.exp())
    assert [node.target for node in graph.graph.nodes] == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.1, 3, -1e-30, -0.0, float("inf")])
def test_numbers_are_rounded_as_torch_rounds_them(number: float, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    graph = make_fx(
        lambda x: (
            x * number + number - (number - x) / number,
            x - number,
            x.sum() * number,
            1 / (x * 0.0) - 1 / (x * number),
        )
    )(x)
    for given, wanted in zip(make_replay(graph)(x), graph(x), strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=0, equal_nan=True)
        assert given.dtype == wanted.dtype


def test_integers_times_a_number_become_floats() -> None:
    x = torch.arange(3)
    graph = make_fx(lambda x: (x * 0.5, x * 2, x + 1))(x)
    for given, wanted in zip(make_replay(graph)(x), graph(x), strict=True):
        assert torch.equal(given, wanted)
        assert given.dtype == wanted.dtype
