"""Recorded whole steps are the steps of the captured engine, to the bit where kernels are the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedules

from pyro_vae.svi import ELBO, IWAE, STL, Fit, NonFiniteError
from pyro_vae.svi.engines.recorded import RecordedFunction
from tests.svi.engines.test_many_steps import (
    amortized,
    conditional,
    fitted,
    halving,
    rows_bad_in_a_row,
    warming_up,
    with_zeros,
)
from tests.svi.pairs import PAIRS, Pair, observations
from tests.svi.tape import TapeRecorder

EXACT_LR = 2.0**-7
"""As much in single precision, in which a CUDA device keeps its learning rates."""


@pytest.fixture(autouse=True)
def _cpu_in_place_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.svi.fitting.check_engine", lambda *_: None)
    monkeypatch.setattr("pyro_vae.svi.engines.many_steps.CudaRecorder", TapeRecorder)
    monkeypatch.setattr("pyro_vae.svi.engines.captured.CudaRecorder", TapeRecorder)


def state_of(done: Fit) -> list[Tensor]:
    modules = [program for program in (done.model, done.guide) if isinstance(program, nn.Module)]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def assert_same_fit(make: Callable[[], Pair], data: Any = None, **options: Any) -> Fit:
    options = {"lr": EXACT_LR, **options}
    (recorded, ours), (captured, theirs) = (
        fitted(make, engine, data, **options) for engine in ("cuda-graph", "captured")
    )
    assert (recorded.engine, captured.engine) == ("cuda-graph", "captured")
    for name in captured.history:
        np.testing.assert_array_equal(recorded.history[name], captured.history[name], err_msg=str(name))
    for p, q in zip([*ours, *state_of(recorded)], [*theirs, *state_of(captured)], strict=True):
        assert torch.equal(p, q)
    return recorded


@pytest.mark.parametrize(
    "name",
    [
        *("rescaled to 100", "dropout", "batch norm", "functions", "full covariance", "flow", "gamma"),
        *("score function", "AutoLowRank"),
    ],
)
def test_pairs_of_every_kind_are_fitted(name: str) -> None:
    """40 rows in batches of 16: the last batch of an epoch is a recording of its own. A recording repeats
    what is captured, which is tested for every pair: masks, buffers, draws of every kind, global latents."""
    assert_same_fit(PAIRS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"objective": ELBO(kl_weight=warming_up)},
        {"objective": ELBO(2, analytic_kl=False)},
        {"objective": STL()},
        {"objective": IWAE(3)},
        {"max_norm": 0.5},
        {"schedule": lambda o: schedules.SequentialLR(o, [halving(o), halving(o)], [3])},
        {
            "optimizer": lambda groups, lr: Adam(
                groups, lr=lr, betas=(0.5, 0.9), weight_decay=0.1, fused=True
            ),
            "schedule": halving,
        },
        {"steps": 4},
        {"batch_size": 64},
        {"batch_size": 20},
        {"validation": observations(12), "patience": 1, "epochs": 10, "lr": 0.25},
    ],
    ids=" ".join,
)
def test_whatever_fit_is_asked_for(options: dict[str, Any]) -> None:
    assert_same_fit(amortized, observations(48), **options)


def test_matched_rates_are_rounded_to_single_precision() -> None:
    recorded, captured = (
        fitted(amortized, engine, lr_multiplier="matched")[0] for engine in ("cuda-graph", "captured")
    )
    assert recorded.engine == "cuda-graph"
    np.testing.assert_allclose(recorded.history["loss"], captured.history["loss"], rtol=1e-7)


def test_a_call_has_many_steps() -> None:
    assert_same_fit(amortized, observations(150 * 2), batch_size=2, epochs=1)


@pytest.mark.parametrize(
    ("batch_size", "count", "run"), [(16, 1, 1), (3, 1, 1), (3, 2, 2), (3, 3, 2), (1, 5, 2)]
)
def test_bad_steps_are_left_out(batch_size: int, count: int, run: int) -> None:
    """Two in a row end a call, and the noise goes on from where they left it."""
    data = with_zeros(*rows_bad_in_a_row(batch_size, count, run))
    recorded = assert_same_fit(
        conditional, data, batch_size=batch_size, schedule=halving, epochs=4, steps=100
    )
    assert bool(recorded.history["nonfinite"].sum() > 0)


def test_three_bad_steps_end_a_fit_with_the_words_of_the_captured_engine() -> None:
    messages = []
    for engine in ("cuda-graph", "captured"):
        with pytest.raises(NonFiniteError) as raised:
            fitted(conditional, engine, with_zeros(*range(0, 40, 2)), batch_size=2)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


class WithStatistics(nn.Module):
    """Batch norm in the guide of a pair that rows of zeros break."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.norm = conditional(), nn.BatchNorm1d(6)

    def model(self, x: Tensor, scale: Tensor) -> None:
        self.pair.model(x, scale)

    def guide(self, x: Tensor, scale: Tensor) -> None:
        pyro.module("norm", self.norm)
        self.pair.guide(self.norm(x), scale)


def test_what_is_left_of_a_call_after_its_end_changes_no_statistics() -> None:
    """Two bad steps in a row end it; the repetitions that were already asked for compute on."""
    buffers = []
    for engine in ("cuda-graph", "captured"):
        torch.manual_seed(0)
        both = WithStatistics()
        fitted(lambda both=both: Pair(both.model, both.guide), engine, with_zeros(0, 1, 2), batch_size=2)
        buffers.append(list(both.norm.buffers()))
    for ours, theirs in zip(*buffers, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_program_that_cannot_be_recorded_is_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.svi.tape.WAITS", (torch.ops.aten.randn.default,))
    recorded, ours = fitted(amortized, "cuda-graph")
    captured, theirs = fitted(amortized, "captured")
    assert (recorded.engine, captured.engine) == ("captured", "captured")
    assert "one by one (engine 'captured'): aten.randn.default waits for the device" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_wrong_numbers_are_found_before_anything_is_fitted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "pyro_vae.svi.engines.recorded.total_norm", lambda g: torch.stack([x.sum() for x in g]).sum()
    )
    monkeypatch.setattr(RecordedFunction, "_clipped", lambda self, g, norm: [2 * x for x in g])
    _, ours = fitted(amortized, "cuda-graph")
    _, theirs = fitted(amortized, "captured")
    assert "records loss and gradients alone as a CUDA graph: it gives other numbers" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("optimizer", [SGD, Adam], ids=["SGD", "Adam that is not fused"])
def test_other_optimizers_record_loss_and_gradients(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    recorded, ours = fitted(amortized, "cuda-graph", optimizer=optimizer)
    captured, theirs = fitted(amortized, "captured", optimizer=optimizer)
    assert (recorded.engine, captured.engine) == ("cuda-graph", "captured")
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_a_fit_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    path = tmp_path / "fit.ckpt"
    fitted(amortized, "cuda-graph", lr=EXACT_LR, epochs=2, checkpoint=path)
    again, ours = fitted(amortized, "cuda-graph", lr=EXACT_LR, epochs=4, checkpoint=path)
    whole, theirs = fitted(amortized, "cuda-graph", lr=EXACT_LR, epochs=4)
    assert again.engine == whole.engine == "cuda-graph"
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


class Line(nn.Module):
    """A step as a graph: loss, KL, reconstruction and two gradients."""

    def forward(self, a: Tensor, b: Tensor, weight: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        error = x @ a - b
        loss = error.square().sum() * weight
        return loss, loss, loss, x.T @ error, -error.sum(0)


def test_nothing_is_asked_of_the_device_and_nothing_comes_from_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tensors that claim to be on a CUDA device: mixing devices, or reading a number, is an error."""

    def adam(*lists: list[Tensor], lr: Tensor, found_inf: Tensor, **_: Any) -> None:
        assert all(x.device.type == "cuda" for x in [*(x for group in lists for x in group), lr, found_inf])

    with FakeTensorMode():
        x, a, b = (torch.empty(size, device="cuda") for size in ((8, 3), (3, 2), (2,)))
        steps = RecordedFunction(
            fx.symbolic_trace(Line()),
            [a, b],
            [x],
            Adam([a, b], fused=True),
            TapeRecorder(torch.device("cpu")),
            max_norm=1.0,
        )
        monkeypatch.setattr(torch, "_fused_adam_", adam)
        steps._step((torch.empty(20, 3, device="cuda"),))


class Repeats(TapeRecorder):
    """Repeats work by doing it again, for work that is no list of torch's operations."""

    def record(self, work: Callable[[], None], together: int = 1) -> Callable[[], None]:
        def again() -> None:
            for _ in range(together):
                self.streams.append(self.generator.get_state())
                work()

        work()
        return again


@pytest.mark.slow
def test_a_fused_step_has_the_numbers_of_the_captured_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By torch's compiler, here for the CPU."""
    monkeypatch.setattr("pyro_vae.svi.engines.many_steps.CudaRecorder", Repeats)
    monkeypatch.setattr("pyro_vae.svi.engines.choice.STEPS_WORTH_FUSING", 1)
    caplog.set_level("INFO")
    (fused, ours), (_, theirs) = (
        fitted(amortized, engine, lr=EXACT_LR, max_norm=0.5) for engine in ("cuda-graph", "captured")
    )
    assert fused.engine == "cuda-graph"
    assert "not fused" not in caplog.text
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
