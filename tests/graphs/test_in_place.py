"""In-place operations become new tensors where nobody can tell the difference, and only there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.graphs.in_place import without_own_mutations, works_in_place
from pyro_vae.graphs.tracing import capture


def add_up(x: Tensor) -> Tensor:
    total = x * 2
    total += x
    total += 1
    return total * total


def relu(x: Tensor) -> Tensor:
    return torch.relu_(x - 1).exp()


def view_that_is_read_later(x: Tensor) -> Tensor:
    made = x * 2
    row = made[0]
    made += 1
    return row + made


def change_of_an_input(x: Tensor) -> Tensor:
    return x.add_(1)


def row_that_is_changed(x: Tensor) -> Tensor:
    made = x * 2
    made[0] += 1
    return made


def row_that_is_filled(x: Tensor) -> Tensor:
    made = x * 2
    made[..., 0] = 3.0
    made[1:, -1] = x[0, 0]
    return made.exp()


def part_of_a_part(x: Tensor) -> Tensor:
    made = x * 2
    before = made.exp()
    made[1:][..., 0] = x[1:, 1]
    return before + made * made[1]


def part_that_is_read_later(x: Tensor) -> Tensor:
    made = x * 2
    row = made[0]
    row.mul_(3)
    return row + made


def view_of_what_a_part_is_of(x: Tensor) -> Tensor:
    made = x * 2
    transposed = made.t()
    made[0] = 1.0
    return transposed.exp()


def part_of_an_input(x: Tensor) -> Tensor:
    x[0] = 1.0
    return x.exp()


def value_before(x: Tensor) -> Tensor:
    made = x * 2
    before = made + 0
    made.mul_(3)
    return before + made


@pytest.mark.parametrize(
    ("function", "remaining"),
    [
        (add_up, False),
        (relu, False),
        (value_before, False),
        (view_that_is_read_later, True),
        (change_of_an_input, True),
        (row_that_is_changed, True),
        (row_that_is_filled, False),
        (part_of_a_part, False),
        (part_that_is_read_later, True),
        (view_of_what_a_part_is_of, True),
        (part_of_an_input, True),
    ],
)
def test_numbers_stay_and_only_own_tensors_are_rewritten(
    function: Callable[[Tensor], Tensor], remaining: bool
) -> None:
    x = torch.randn(3, 2)
    graph = make_fx(function)(x.clone())
    without_own_mutations(graph)
    graph.recompile()
    assert torch.equal(graph(x.clone()), function(x.clone()))
    assert any(map(works_in_place, graph.graph.nodes)) == remaining


def test_one_of_several_results_is_changed_in_place() -> None:
    """``ReLU(inplace=True)`` after a layer normalization."""
    weight = torch.ones(3)

    def function(x: Tensor) -> tuple[Tensor]:
        return (torch.relu_(torch.nn.functional.layer_norm(x, [3], weight)) + 1,)

    graph = capture(function, [torch.randn(4, 3)])
    assert not any(works_in_place(node) for node in graph.graph.nodes)
    x = torch.randn(4, 3)
    torch.testing.assert_close(graph(x)[0], function(x)[0])


def test_the_gradient_of_parts_that_are_set_is_simplified() -> None:
    """As in Pyro's splines: ``knots[..., 0] = lower``. Autograd reads and writes the memory by strides."""

    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            knots = x.cumsum(-1) * 1.0
            knots[..., 0], knots[:, 2:] = -1.0, 4.0
            product = knots * knots.exp()
            product[:2, 1].mul_(x[:2, 0])
            return torch.autograd.grad(product[..., :2].sin().sum(), [x])

    graph = capture(gradient, [torch.randn(4, 3, dtype=torch.float64)])
    assert not any(works_in_place(node) for node in graph.graph.nodes)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(graph(x)[0], gradient(x)[0], rtol=1e-14, atol=0)
