"""A fit with native steps is the fit of the captured engine, to rounding."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim import lr_scheduler as schedules
from torch.utils.data import TensorDataset

from pyro_vae.batches.batches import epoch_order
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.svi import ELBO, STL, EpochRecord, Fit, NonFiniteError, fit
from pyro_vae.svi.engines.choice import check_engine
from pyro_vae.svi.engines.many_steps import MOST_BUILDS
from pyro_vae.svi.engines.native.emitter import emit
from tests.svi.engines.native.cases import needs_compiler
from tests.svi.pairs import PAIRS, Pair, observations

pytestmark = needs_compiler

NATIVE = (
    "rescaled to 100",
    "normal",
    "functions",
    "tutorial",
    "flow",
    "scaled",
    "masked, no closed KL",
    "drawn bottom-up",
    "AutoNormal",
)
"""Pairs whose every operation the native function knows."""

NOT_NATIVE = ("dropout", "gamma", "score function", "AutoLowRank")
"""Pairs with an operation that it does not know."""

OPTIONS = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "progress": False}


def amortized() -> Pair:
    torch.manual_seed(0)
    model = VAE(nn.Linear(2, 6), 2, "bernoulli")
    return Pair(model, AmortizedNormal(model, nn.Linear(6, 5)))


def fitted(
    make: Callable[[], Pair], engine: str, data: Any = None, **options: Any
) -> tuple[Fit, list[Tensor]]:
    """A fit from one start, and the tensors that it trained."""
    torch.manual_seed(0)
    pair = make()
    data = observations(40) if data is None else data
    done = fit(pair.model, pair.guide, data, engine=engine, **{**OPTIONS, **options})
    tensors = [
        p
        for program in (done.model, done.guide)
        if isinstance(program, nn.Module)
        for p in program.parameters()
    ]
    return done, [*tensors, *done._state["params"].values()]


def assert_same_fit(make: Callable[[], Pair], data: Any = None, **options: Any) -> Fit:
    (native, ours), (captured, theirs) = (
        fitted(make, engine, data, **options) for engine in ("native", "captured")
    )
    assert (native.engine, captured.engine) == ("native", "captured")
    for name in captured.history:
        np.testing.assert_allclose(native.history[name], captured.history[name], rtol=1e-9, err_msg=str(name))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    return native


@pytest.mark.parametrize("name", [*NATIVE, *NOT_NATIVE])
def test_every_pair_is_fitted_natively_or_says_why_not(name: str, caplog: pytest.LogCaptureFixture) -> None:
    if name in NATIVE:
        assert_same_fit(PAIRS[name])
        return
    native, ours = fitted(PAIRS[name], "native")
    captured, theirs = fitted(PAIRS[name], "captured")
    assert native.engine == "captured"
    assert "one by one (engine 'captured'): a" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    np.testing.assert_array_equal(native.history["loss"], captured.history["loss"])


def warming_up(step: int) -> float:
    return min(1.0, (step + 1) / 5)


def halving(optimizer: torch.optim.Optimizer) -> schedules.LRScheduler:
    return schedules.StepLR(optimizer, 2, 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": ELBO(kl_weight=warming_up)},
        {"objective": ELBO(2, analytic_kl=False)},
        {"objective": STL()},
        {"schedule": lambda o: schedules.CosineAnnealingLR(o, 7), "max_norm": 0.5},
        {"schedule": lambda o: schedules.SequentialLR(o, [halving(o), halving(o)], [3])},
        {"optimizer": Adam},
        {
            "optimizer": lambda groups, lr: Adam(groups, lr=lr, betas=(0.5, 0.9), eps=1e-3),
            "schedule": halving,
        },
        {"lr_multiplier": "matched", "schedule": halving},
        {"steps": 4},
        {"batch_size": 64},
        {"batch_size": 20},
        {"validation": observations(12), "patience": 1, "epochs": 10, "lr": 0.3},
    ],
    ids=" ".join,
)
def test_whatever_fit_is_asked_for(options: dict[str, Any]) -> None:
    assert_same_fit(amortized, observations(48), **options)


def conditional() -> Pair:
    """Two parts; where the second is 0 the density of the first is."""
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 2)

    def model(x: Tensor, scale: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z) / scale, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, scale: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x * scale), 0.5).to_event(1))

    return Pair(model, guide)


def with_zeros(*rows: int) -> tuple[Tensor, Tensor]:
    scale = torch.ones(40, 1)
    scale[list(rows)] = 0.0
    return observations(40), scale


def rows_bad_in_a_row(batch_size: int, count: int, run: int) -> tuple[int, ...]:
    """``count`` of 40 rows whose batches follow each other ``run`` times in four epochs, and never more."""
    orders = [epoch_order(40, 0, epoch) for epoch in range(4)]
    for seed in range(1000):
        rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:count]
        batches = [batch for order in orders for batch in order.split(batch_size)]
        bad = "".join("x" if torch.isin(batch, rows).any() else "." for batch in batches)
        if max(map(len, bad.split("."))) == run:
            return tuple(rows.tolist())
    raise AssertionError("no rows are")


@pytest.mark.parametrize(
    ("batch_size", "count", "run"), [(16, 0, 0), (16, 1, 1), (3, 0, 0), (3, 1, 1), (3, 2, 2), (3, 3, 2)]
)
def test_parts_are_gathered_and_bad_steps_are_left_out(batch_size: int, count: int, run: int) -> None:
    """Wherever the bad batches fall: the last smaller one of an epoch, two in a row (three end a fit)."""
    data = with_zeros(*rows_bad_in_a_row(batch_size, count, run))
    native = assert_same_fit(conditional, data, batch_size=batch_size, schedule=halving, epochs=4, steps=40)
    assert bool(native.history["nonfinite"].sum() > 0) == bool(count)


def test_three_bad_steps_end_a_fit_with_the_words_of_the_captured_engine() -> None:
    messages, left = [], []
    for engine in ("native", "captured"):
        torch.manual_seed(0)
        pair = conditional()
        callback: list[Any] = []
        with pytest.raises(NonFiniteError) as raised:
            fitted(
                lambda pair=pair: pair,
                engine,
                with_zeros(*range(0, 40, 2)),
                batch_size=2,
                callbacks=[callback.append],
            )
        messages.append(str(raised.value))
        left.append(
            [
                cell.cell_contents
                for cell in pair.model.__closure__
                if isinstance(cell.cell_contents, nn.Module)
            ]
        )
    assert messages[0] == messages[1]
    assert "log p of the model's site 'x' is -inf" in messages[0]
    for p, q in zip(left[0][0].parameters(), left[1][0].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_schedule_that_moves_more_than_the_rate_is_left_to_the_graph(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"schedule": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=9)}
    (native, ours), (_, theirs) = (fitted(amortized, engine, **options) for engine in ("native", "captured"))
    assert native.engine == "captured"
    assert "its schedule moves betas of the optimizer" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optimizer": torch.optim.AdamW}, "the optimizer AdamW"),
        ({"data": TensorDataset(observations(40))}, "its batches come from a loader"),
    ],
    ids=["AdamW", "loader"],
)
def test_what_cannot_be_native_is_captured(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    native, ours = fitted(amortized, "native", **options)
    captured, theirs = fitted(amortized, "captured", **options)
    assert (native.engine, captured.engine) == ("captured", "captured")
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("pyro_vae")]
    assert reason in said
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_without_a_compiler_a_fit_is_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    native, _ = fitted(amortized, "native")
    assert native.engine == "captured"
    assert "the compiler /no/such/compiler did not run" in caplog.text


def test_numbers_that_are_not_the_graphs_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "pyro_vae.svi.engines.native.engine.emit",
        lambda program: emit(program).replace("call.loss[k] = ", "call.loss[k] = 2 * "),
    )
    native, _ = fitted(amortized, "native")
    assert native.engine == "captured"
    assert "it gives other numbers than its graph" in caplog.text


def test_auto_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(amortized, "auto")[0].engine == "captured"
    monkeypatch.setattr("pyro_vae.svi.engines.choice.build_pays", lambda steps, flops: True)
    assert fitted(amortized, "auto")[0].engine == "native"


class Annealed(nn.Module):
    """A plain number on a module, which a graph freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.temperature = PAIRS["normal"](), 1.0

    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=self.temperature):
            self.pair.model(x)

    def guide(self, x: Tensor) -> None:
        self.pair.guide(x)


@pytest.mark.parametrize("changes", [1, MOST_BUILDS])
def test_a_program_that_changes_is_built_again_but_not_for_ever(
    changes: int, caplog: pytest.LogCaptureFixture
) -> None:
    histories = []
    for engine in ("native", "captured"):
        torch.manual_seed(0)
        both = Annealed()

        def cool(record: EpochRecord, both: Annealed = both) -> None:
            if record.epoch < changes:
                both.temperature /= 2

        done = fit(
            both.model,
            both.guide,
            observations(40),
            engine=engine,
            callbacks=[cool],
            **{**OPTIONS, "epochs": 6},
        )
        histories.append(done.history)
        assert done.engine == ("native" if engine == "native" and changes < MOST_BUILDS else "captured")
    assert ("its graph has changed" in caplog.text) == (changes == MOST_BUILDS)
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-9, err_msg=str(name))


def test_the_state_of_the_optimizer_is_true_after_every_epoch() -> None:
    """Whoever saves it then can go on with any engine."""
    states: dict[str, list[Any]] = {"native": [], "captured": []}
    for engine, kept in states.items():
        made: list[Adam] = []

        def remember(groups: Any, lr: float, made: list[Adam] = made) -> Adam:
            made.append(Adam(groups, lr=lr, fused=True))
            return made[0]

        def look(_: EpochRecord, made: list[Adam] = made, kept: list[Any] = kept) -> None:
            kept.append(copy.deepcopy(made[0].state_dict()))

        fitted(amortized, engine, optimizer=remember, schedule=halving, callbacks=[look])
    for ours, theirs in zip(states["native"], states["captured"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        for i, state in ours["state"].items():
            for name, value in state.items():
                torch.testing.assert_close(value, theirs["state"][i][name], msg=name)


def test_native_needs_the_cpu() -> None:
    with pytest.raises(ValueError, match="engine is 'native', but the fit runs on cuda; give device='cpu'"):
        check_engine("native", torch.device("cuda"))
