"""What is selected by a mask to be assigned by it is a choice, and no size that depends on values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_vae.graphs.reading import DependsOnValuesError
from pyro_vae.graphs.tracing import capture


def test_masked_assignment_is_captured_for_every_mask() -> None:
    weight = torch.tensor(2.0, requires_grad=True)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        outside = x.abs() > 1
        out = weight * x
        out[outside] = x[outside]
        other = x.exp()
        other[outside] = 0.0
        (gradient,) = torch.autograd.grad(out.square().sum(), [weight])
        return out.detach(), other, gradient

    graph = capture(function, [torch.tensor([0.0, 2.0, -0.5])], lifted=[weight])
    for x in (torch.tensor([3.0, -4.0, 5.0]), torch.tensor([0.1, 0.2, -1.5])):
        for found, wanted in zip(graph(weight, x), function(x), strict=True):
            torch.testing.assert_close(found, wanted)


def test_rows_are_selected_by_a_mask_of_rows() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor]:
        out, first = x.clone(), x[:, 0] > 0
        out[first] = y[first]
        return (out,)

    x, y = torch.randn(4, 3), torch.randn(4, 3)
    graph = capture(function, [x, y])
    torch.testing.assert_close(graph(y, x)[0], function(y, x)[0])


@pytest.mark.parametrize(
    "select",
    [
        lambda a, i: a[i],
        lambda a, i: a[i, 1],
        lambda a, i: a[1, i],
        lambda a, i: a[:, i],
        lambda a, i: a[None, 1:, i, 0],
        lambda a, i: a[i, :, :1],
        lambda a, i: a[0][i.to(torch.int32)],
    ],
)
def test_a_scalar_that_was_drawn_selects_as_it_does_in_torch(
    select: Callable[[Tensor, Tensor], Tensor],
) -> None:
    table = torch.randn(3, 3, 2, requires_grad=True)

    def function(i: Tensor) -> tuple[Tensor, ...]:
        chosen = select(table, i)
        (gradient,) = torch.autograd.grad(chosen.square().sum(), [table])
        return chosen.detach(), gradient

    graph = capture(function, [torch.tensor(0)], lifted=[table])
    for i in (0, 1, -1):
        for found, wanted in zip(graph(table, torch.tensor(i)), function(torch.tensor(i)), strict=True):
            assert torch.equal(found, wanted)
    with pytest.raises(IndexError):
        graph(table, torch.tensor(3))


def assigned_and_counted(x: Tensor) -> tuple[Tensor]:
    out, inside = torch.zeros_like(x), x > 0
    chosen = x[inside]
    out[inside] = chosen
    return (out / chosen.shape[0],)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x[x > 0].sum(),),
        lambda x: (x.clone().index_put_((x > 0,), 2.0 * x[x > 0]),),
        lambda x: (x / len(x[x > 0]),),
        assigned_and_counted,
    ],
    ids=["sum", "other mask", "length", "assigned and counted"],
)
def test_other_selections_are_still_refused(function: object) -> None:
    with pytest.raises(DependsOnValuesError, match="size of a tensor depends on values"):
        capture(function, [torch.tensor([1.0, -1.0, 2.0])])  # type: ignore[arg-type]


def test_numbers_to_index_by_belong_to_no_input() -> None:
    order = torch.tensor([1, 0])
    graph = capture(lambda x: (torch.stack([x[i] * (k + 1) for k, i in enumerate(order)]),), [torch.ones(2)])
    assert graph(torch.tensor([3.0, 5.0]))[0].tolist() == [5.0, 6.0]


def test_a_number_in_a_part_or_by_a_mask_is_one_choice() -> None:
    def function(x: Tensor) -> tuple[Tensor]:
        knots = x * 2
        knots[..., 0], knots[1:] = -3.0, 3.0
        knots[x > 0.5] = 7.0
        return (knots,)

    x, other = torch.randn(2, 4, 5)
    graph = capture(function, [x])
    operations = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert operations == ["aten.mul.Tensor", *["aten.where.self"] * 2, "aten.gt.Scalar", "aten.where.self"]
    assert torch.equal(graph(other)[0], function(other)[0])
