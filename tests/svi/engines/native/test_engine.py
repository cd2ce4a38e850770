import dataclasses
import math
import platform

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, fx, nn

from pyro_vae.pairs.isolation import empty_store, isolated
from pyro_vae.svi.engines.native import NativeFunction, supported
from pyro_vae.svi.engines.steps import CannotError
from pyro_vae.svi.engines.updates import adam_states, total_norm
from pyro_vae.svi.objectives.elbo import ELBO
from tests.svi.engines.native.cases import Case, adam, distance, eager_steps, native_steps, needs_compiler

pytestmark = needs_compiler

CASE = Case()


def ones(steps: int) -> Tensor:
    return torch.ones(steps)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twelve_steps_are_those_of_pyro_and_torch(analytic: bool, dtype: torch.dtype) -> None:
    """Pyro's own loss_and_grads and torch's Adam, under the same noise."""
    case = Case(features=50, hidden=(33,), batch=37, objective=ELBO(analytic_kl=analytic), dtype=dtype)
    a, b = case.make(), case.make()
    index = a.index(12)
    given, _ = native_steps(a.native(adam(a.parameters)), a.data, index, ones(12))
    elbo, optimizer, losses = (TraceMeanField_ELBO if analytic else Trace_ELBO)(), adam(b.parameters), []
    with isolated(b.model, b.guide, state=empty_store(), seed=7):
        for rows in index:
            optimizer.zero_grad()
            losses.append(elbo.loss_and_grads(b.model, b.guide, b.data[rows]))
            optimizer.step()
    single = dtype == torch.float32
    torch.testing.assert_close(given.loss, torch.tensor(losses), rtol=1e-5 if single else 1e-12, atol=0)
    assert distance(a.parameters, b.parameters) < (1e-5 if single else 1e-12)
    assert distance(a.parameters, case.make().parameters) > 0.01


def test_calls_of_any_length_and_any_number_of_threads_give_the_same_bits() -> None:
    case = Case(features=130, hidden=(70,), latent=8, batch=128)
    one, two, many = case.make(), case.make(), case.make()
    index = one.index(6)
    native_steps(one.native(adam(one.parameters), threads=1), one.data, index, ones(6))
    native_steps(two.native(adam(two.parameters), threads=3), two.data, index, ones(6))
    steps = many.native(adam(many.parameters))
    torch.manual_seed(7)
    for rows in index.split([1, 3, 2]):
        steps.run((many.data,), rows, ones(len(rows)))
    for p, q, r in zip(one.parameters, two.parameters, many.parameters, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_the_optimizer_can_go_on_with_another_engine_and_come_back() -> None:
    a, b = CASE.make(), CASE.make()
    index = a.index(6)
    for made, engines in ((a, "nen"), (b, "eee")):
        optimizer = adam(made.parameters)
        steps = made.native(optimizer)
        for rows, engine in zip(index.split(2), engines, strict=True):
            if engine == "n":
                native_steps(steps, made.data, rows, ones(2))
            else:
                eager_steps(made, optimizer, rows, ones(2))
    assert distance(a.parameters, b.parameters) < 1e-12


def test_groups_keep_their_rate_and_eps_and_a_schedule_gives_rates_by_step() -> None:
    a, b = CASE.make(), CASE.make()
    optimizers = [
        torch.optim.Adam(
            [
                {"params": made.parameters[:3], "lr": 0.02, "eps": 1e-3},
                {"params": made.parameters[3:], "lr": 0.005},
            ],
            lr=0.01,
        )
        for made in (a, b)
    ]
    index = a.index(4)
    rates = torch.tensor([[0.02, 0.005]]) * torch.tensor([1.0, 0.5, 0.25, 0.125]).unsqueeze(1)
    torch.manual_seed(7)
    a.native(optimizers[0]).run((a.data,), index, ones(4), rates)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizers[1], 0.5)
    eager_steps(b, optimizers[1], index, ones(4), schedule)
    assert distance(a.parameters, b.parameters) < 1e-12


def test_the_gradient_is_clipped_to_its_norm() -> None:
    case = dataclasses.replace(CASE, max_norm=0.1)
    a, b = case.make(), case.make()
    index = a.index(5)
    given, _ = native_steps(a.native(adam(a.parameters, eps=0.1)), a.data, index, ones(5))
    wanted, _ = eager_steps(b, adam(b.parameters, eps=0.1), index, ones(5))
    torch.testing.assert_close(given.grad_norm, wanted.grad_norm)
    assert float(given.grad_norm.min()) > 0.1
    assert distance(a.parameters, b.parameters) < 1e-12


def test_a_step_that_is_not_finite_changes_nothing_and_three_end_the_run() -> None:
    made = CASE.make()
    data = made.data.clone()
    data[0, 0] = math.nan
    good, bad = torch.arange(1, 9), torch.arange(8)
    optimizer = adam(made.parameters)
    steps = made.native(optimizer)
    before = [p.detach().clone() for p in made.parameters]
    given = steps.run((data,), bad.repeat(2, 1), ones(2))
    assert given.bad.tolist() == [True, True]
    assert all(torch.equal(p, q) for p, q in zip(made.parameters, before, strict=True))
    given = steps.run((data,), torch.stack([bad, good]), ones(2), bad_in_a_row=2)
    assert given.bad.tolist() == [True]
    given = steps.run((data,), torch.stack([good, bad, bad, bad, good, good]), ones(6))
    assert given.bad.tolist() == [False, True, True, True]
    assert float(optimizer.state[made.parameters[0]]["step"]) == 1


def test_nan_passes_through_activations() -> None:
    """One after the other: any that gives a number for NaN hides it from those behind it."""
    made = CASE.make()
    activations = (nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.Softplus(), nn.GELU(), nn.SiLU(), nn.Tanh())
    made.guide.encoder = nn.Sequential(made.guide.encoder, *activations)
    data = torch.full_like(made.data, math.nan)
    given = made.native(adam(made.parameters)).run((data,), made.index(1), ones(1))
    assert bool(given.bad[0])
    assert math.isnan(float(given.loss[0]))


@pytest.mark.parametrize(("size", "bad"), [(1e18, False), (1e20, True), (1e25, True)])
def test_a_gradient_whose_squares_overflow_is_not_finite_as_it_is_to_torch(size: float, bad: bool) -> None:
    """Adam's second moments would be infinite for ever."""
    gradient = torch.full((20,), size)
    steps, _ = steps_of(lambda p, w, x: (w * 0 + p.sum(), w, w, p * 0 + size), [torch.ones(20)])
    given = steps.run((torch.zeros(4, 1),), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1))
    assert bool(given.bad[0]) is bad
    torch.testing.assert_close(given.grad_norm[0], total_norm([gradient.float()]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="where such numbers are slow")
def test_moments_below_the_normal_range_are_zero_but_nothing_else_is() -> None:
    """Dead units have them for ever, and they cost as much as the rest of the step."""
    steps, _ = steps_of(lambda p, w, x: ((p * 1e-40).sum() + w, w, w, p * 0), [torch.ones(64)])
    (state,) = adam_states(steps.optimizer, steps.parameters)
    state["exp_avg"].fill_(1e-38)
    given = steps.run((torch.zeros(4, 1),), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1))
    assert float(state["exp_avg"].abs().max()) == 0
    assert float(given.loss[0]) > 0
    assert float(torch.tensor(1e-40, dtype=torch.float32) * 2) > 0


def test_constants_are_read_where_they_are() -> None:
    scale = torch.ones(3, dtype=torch.float32)
    steps, _ = steps_of(lambda p, w, x: ((p * scale).sum(), w, w, p), [torch.ones(3)])
    index = torch.zeros(1, 2, dtype=torch.int64)
    first = steps.run((torch.zeros(4, 1),), index, torch.ones(1), torch.zeros(1, 1)).loss
    scale.fill_(5.0)
    second = steps.run((torch.zeros(4, 1),), index, torch.ones(1), torch.zeros(1, 1)).loss
    torch.testing.assert_close(second, 5 * first)


def steps_of(function: object, parameters: list[Tensor]) -> tuple[NativeFunction, list[Tensor]]:
    """Float32 steps of ``function(*parameters, kl_weight, x)`` with x of shape (2, 1)."""
    from torch.fx.experimental.proxy_tensor import make_fx

    parameters = [p.to(torch.float32) for p in parameters]
    x = torch.zeros(2, 1, dtype=torch.float32)
    weight = torch.ones((), dtype=torch.float32)
    graph: fx.GraphModule = make_fx(function, _allow_non_fake_inputs=True)(*parameters, weight, x)  # type: ignore[arg-type]
    torch.set_default_dtype(torch.float32)
    return NativeFunction(graph, parameters, (x,), torch.optim.Adam(parameters)), parameters


def test_wrong_arguments_are_named() -> None:
    made = CASE.make()
    steps = made.native(adam(made.parameters))
    with pytest.raises(ValueError, match=r"index goes from 0 to 99, but data has 24 rows"):
        steps.run((made.data,), torch.tensor([[0, 99, 0, 0, 0, 0, 0, 0]]), ones(1))
    with pytest.raises(ValueError, match=r"index is of torch.int64 and shape \(1, 2\)"):
        steps.run((made.data,), torch.zeros(1, 2, dtype=torch.int64), ones(1))
    with pytest.raises(ValueError, match="kl_weight has shape"):
        steps.run((made.data,), made.index(2), ones(1))
    with pytest.raises(ValueError, match="lr has shape"):
        steps.run((made.data,), made.index(2), ones(2), ones(2))
    with pytest.raises(ValueError, match="unlike the batch"):
        steps.run((made.data.float(),), made.index(2), ones(2))


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD"),
        (lambda p: torch.optim.AdamW(p), "AdamW"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), "weight_decay"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.Adam(p[1:]), "leaves out"),
    ],
)
def test_other_optimizers_are_refused(optimizer: object, reason: str) -> None:
    made = CASE.make()
    with pytest.raises(CannotError, match=reason):
        made.native(optimizer(made.parameters))  # type: ignore[operator]


def test_what_is_not_known_is_refused_by_name() -> None:
    made = CASE.make()
    batch = (made.data[: CASE.batch],)
    assert supported(made.capture(), made.parameters, batch) is None
    made.guide.encoder = nn.Sequential(made.guide.encoder, nn.Dropout(0.5))
    reason = supported(made.capture(), made.parameters, batch)
    assert reason is not None
    assert reason.startswith("aten.")
