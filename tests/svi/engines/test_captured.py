import random
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.guides import AmortizedNormal
from pyro_vae.pairs.isolation import empty_store, isolated, training_mode
from pyro_vae.pairs.parameters import trainable_parameters
from pyro_vae.svi.engines.captured import STEPS_BETWEEN_VERIFICATIONS, CapturedSteps
from pyro_vae.svi.engines.eager import EagerSteps
from pyro_vae.svi.engines.steps import CannotError, Plan, Task
from pyro_vae.svi.objectives.elbo import ELBO
from tests.svi.pairs import PAIRS, Decoder, Encoder, Pair, observations


def task_of(model: Any, guide: Any, parameters: dict[str, Tensor], objective: ELBO | None = None) -> Task:
    """A task whose parameters nothing moves."""
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.0)
    objective = ELBO() if objective is None else objective
    return Task(model, guide, objective, parameters, optimizer, None, None, lambda batch: len(batch[0]))


def make_steps(
    pair: Pair, x: Tensor, objective: ELBO | None = None
) -> tuple[EagerSteps, CapturedSteps, dict[str, Tensor]]:
    """Both kinds of steps on one pair; call inside ``isolated``."""
    with (
        training_mode(pair[:2], training=False),
        torch.no_grad(),
    ):  # lazy parameters, and no update of batch norm
        pair.guide(x)
        pair.model(x)
    parameters = trainable_parameters(pair.model, pair.guide, pyro.get_param_store().get_state())
    task = task_of(pair.model, pair.guide, parameters, objective)
    return EagerSteps(task), CapturedSteps(task), parameters


def gradients(steps: EagerSteps, x: Tensor, weight: float = 1.0) -> list[Tensor]:
    """Loss, KL, reconstruction and gradients of a batch."""
    steps.task.kl_weight.fill_(weight)
    return [*steps.gradients((x,))((x,))]


def inside(pair: Pair) -> Any:
    return isolated(pair.model, pair.guide, state=empty_store(), seed=5)


def assert_same(given: Any, wanted: Any) -> None:
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "analytic"),
    [*((name, True) for name in PAIRS), ("normal", False), ("gamma", False), ("rescaled to 100", False)],
)
def test_captured_equals_pyro_under_the_same_seed(name: str, analytic: bool) -> None:
    """Loss, terms and every gradient; at batches of two sizes; with parameters that moved in between."""
    pair, x = PAIRS[name](), observations()
    with inside(pair):
        eager, captured, parameters = make_steps(pair, x, ELBO(analytic_kl=analytic))
        for batch, weight in ((x, 1.0), (x[:5], 0.5), (x, 0.25)):
            torch.manual_seed(11)
            wanted = gradients(eager, batch, weight)
            torch.manual_seed(11)
            assert_same(gradients(captured, batch, weight), wanted)
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.add_(0.01)


def _buffers(pair: Pair) -> list[Tensor]:
    modules = [getattr(f, "__self__", f) for f in pair[:2]]
    return [b for m in modules if isinstance(m, torch.nn.Module) for b in m.buffers()]


def test_batch_norm_moves_its_statistics_as_pyro_does() -> None:
    x = observations()
    torch.manual_seed(0)
    one = PAIRS["batch norm"]()
    torch.manual_seed(0)
    two = PAIRS["batch norm"]()
    for pair, which in ((one, 0), (two, 1)):
        with inside(pair):
            steps = make_steps(pair, x)[which]
            for _ in range(3):
                gradients(steps, x)
    assert int(_buffers(one)[2]) == 3
    assert_same(_buffers(two), _buffers(one))


def test_noise_is_fresh_at_every_call() -> None:
    pair, x = PAIRS["normal"](), observations()
    with inside(pair):
        _, captured, _ = make_steps(pair, x)
        losses = {float(gradients(captured, x)[0]) for _ in range(6)}
    assert len(losses) == 6


def test_the_kl_weight_is_an_input_not_a_constant() -> None:
    pair, x = PAIRS["normal"](), observations()
    with inside(pair):
        _, captured, _ = make_steps(pair, x)
        gradients(captured, x)
        loss, kl, reconstruction, *_ = gradients(captured, x, 0.25)
    torch.testing.assert_close(loss, 0.25 * kl - reconstruction)


def test_capture_leaves_the_random_stream_where_it_was() -> None:
    pair, x = PAIRS["normal"](), observations()
    with inside(pair):
        eager, captured, _ = make_steps(pair, x)
        torch.manual_seed(0)
        wanted = [float(gradients(eager, x)[0]) for _ in range(3)]
        torch.manual_seed(0)
        assert [float(gradients(captured, x)[0]) for _ in range(3)] == pytest.approx(wanted)


class Branching(Decoder):
    def forward(self, x: Tensor) -> None:
        if x.sum().item() > 0:
            super().forward(x)


class Annealed(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.beta = 1.0

    def forward(self, x: Tensor) -> None:
        with poutine.scale(scale=self.beta):
            super().forward(x)


class NumpyNoise(Decoder):
    def forward(self, x: Tensor) -> None:
        with poutine.scale(scale=float(np.random.uniform(0.5, 1.5))):
            super().forward(x)


class PythonNoise(Decoder):
    def forward(self, x: Tensor) -> None:
        with poutine.scale(scale=random.uniform(0.5, 1.5)):
            super().forward(x)


def test_a_branch_on_a_value_is_refused_by_name() -> None:
    pair, x = Pair(Branching(), Encoder()), observations()
    with inside(pair):
        _, captured, _ = make_steps(pair, x)
        with pytest.raises(CannotError, match="tracing it failed with"):
            gradients(captured, x)


@pytest.mark.parametrize("model", [NumpyNoise, PythonNoise])
def test_randomness_outside_torch_is_refused(model: type[Decoder]) -> None:
    pair, x = Pair(model(), Encoder()), observations()
    with inside(pair):
        _, captured, _ = make_steps(pair, x)
        with pytest.raises(CannotError, match="something outside torch"):
            gradients(captured, x)


def test_a_number_that_changes_is_noticed_and_captured_again(caplog: pytest.LogCaptureFixture) -> None:
    pair, x = Pair(Annealed(), Encoder()), observations()
    with inside(pair), caplog.at_level("INFO", logger="pyro_vae"):
        eager, captured, _ = make_steps(pair, x)
        gradients(captured, x)
        pair.model.beta = 0.5  # type: ignore[attr-defined]
        captured.verify((x,), Plan())
        assert "model.beta was 1.0 and is 0.5" in caplog.text
        torch.manual_seed(2)
        wanted = gradients(eager, x)
        torch.manual_seed(2)
        assert_same(gradients(captured, x), wanted)


def test_what_lies_in_a_closure_is_noticed_at_the_next_epoch(caplog: pytest.LogCaptureFixture) -> None:
    inner, settings = Decoder(), {"scale": 1.0}

    def model(x: Tensor) -> None:
        pyro.module("inner", inner)
        with poutine.scale(scale=settings["scale"]):
            inner(x)

    pair, x = Pair(model, Encoder()), observations()
    with inside(pair), caplog.at_level("INFO", logger="pyro_vae"):
        _, captured, _ = make_steps(pair, x)
        stale = float(gradients(captured, x)[2])
        settings["scale"] = 1e-3
        captured.verify((x,), Plan(1))
        assert abs(float(gradients(captured, x)[2])) < abs(stale) / 100
    assert "settings['scale'] has changed" in caplog.text


def test_what_no_place_tells_is_noticed_after_some_steps(tmp_path: Path) -> None:
    """Only a comparison with Pyro tells of a file, and that is not made at every epoch."""
    inner, file = Decoder(), tmp_path / "scale"
    file.write_text("1.0")

    def model(x: Tensor) -> None:
        pyro.module("inner", inner)
        with poutine.scale(scale=float(file.read_text())):
            inner(x)

    pair, x = Pair(model, Encoder()), observations()
    with inside(pair):
        _, captured, _ = make_steps(pair, x)
        stale = float(gradients(captured, x)[2])
        file.write_text("0.001")
        captured.verify((x,), Plan(STEPS_BETWEEN_VERIFICATIONS - 1))
        assert float(gradients(captured, x)[2]) == pytest.approx(stale, rel=0.5)
        captured.verify((x,), Plan(STEPS_BETWEEN_VERIFICATIONS))
        assert abs(float(gradients(captured, x)[2])) < abs(stale) / 100


def test_training_flags_are_part_of_the_signature() -> None:
    pair, x = PAIRS["dropout"](), observations()
    with inside(pair):
        eager, captured, _ = make_steps(pair, x)
        gradients(captured, x)
        with training_mode(pair[:2], training=False):
            torch.manual_seed(2)
            wanted = gradients(eager, x)
            torch.manual_seed(2)
            assert_same(gradients(captured, x), wanted)
    assert len(captured.graphs) == 2


def test_programs_that_set_themselves_up_for_a_new_batch_size_do_so_outside_of_the_graph() -> None:
    x = observations()
    model = Decoder()
    pair = Pair(model, AmortizedNormal(model, torch.nn.Linear(6, 5)))
    with inside(pair):
        eager, captured, _ = make_steps(pair, x)
        for rows in (8, 5, 3):
            torch.manual_seed(2)
            given = gradients(captured, x[:rows])
            torch.manual_seed(2)
            assert_same(given, gradients(eager, x[:rows]))


def test_an_unused_parameter_gets_a_zero_gradient() -> None:
    pair, x = PAIRS["normal"](), observations()
    pair.model.spare = torch.nn.Parameter(torch.ones(3))  # type: ignore[attr-defined]
    with inside(pair):
        _, captured, parameters = make_steps(pair, x)
        by_name = dict(zip(parameters, gradients(captured, x)[3:], strict=True))
    assert by_name["model.spare"].tolist() == [0.0, 0.0, 0.0]


class Transposed(torch.nn.Module):
    """A linear layer whose weight autograd gives a gradient that lies transposed in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((6, 2), 0.1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.nn.functional.linear(z, self.weight.t().contiguous().t())


@pytest.mark.parametrize("which", [0, 1], ids=["eager", "captured"])
def test_gradients_lie_in_memory_as_their_parameters_do(which: int) -> None:
    """Fused Adam walks through memory: it would update the wrong elements."""
    pair, x = PAIRS["normal"](), observations()
    pair.model.net = Transposed()  # type: ignore[attr-defined]
    with inside(pair):
        *engines, parameters = make_steps(pair, x)
        surrogate = ELBO().estimate(pair.model, pair.guide, (x,)).surrogate
        (by_autograd,) = torch.autograd.grad(surrogate, parameters["model.net.weight"])
        assert by_autograd.stride() == (1, 6)
        for parameter, gradient in zip(parameters.values(), gradients(engines[which], x)[3:], strict=True):
            assert gradient.stride() == parameter.stride()


def test_an_internally_subsampling_plate_draws_new_rows() -> None:
    data = torch.arange(20.0)

    def model() -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", 20, subsample_size=4) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[rows])

    def guide() -> None:
        with pyro.plate("data", 20, subsample_size=4):
            pass

    with isolated(model, guide, state=empty_store(), seed=1):
        model()
        parameters = dict(pyro.get_param_store().get_state()["params"])
        captured = CapturedSteps(task_of(model, guide, parameters))
        losses = {float(captured.gradients(())(())[0]) for _ in range(5)}
    assert len(losses) == 5
