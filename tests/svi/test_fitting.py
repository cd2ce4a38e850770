"""``fit``: what it learns, what it leaves alone, and what it says of bad input."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.devices import WORTH_A_SECOND_THREAD, threads_for
from pyro_vae.svi import ELBO, EpochRecord, NonFiniteError, fit
from tests.svi.pairs import PAIRS, Decoder, Encoder, Pair, functions, observations, tutorial


def quick(pair: Pair, data: Any, **options: Any) -> Any:
    return fit(
        pair.model,
        pair.guide,
        data,
        **{"epochs": 3, "batch_size": 16, "lr": 1e-2, "progress": False, **options},
    )


def weights(pair: Pair) -> list[Tensor]:
    modules = [getattr(f, "__self__", f) for f in pair[:2]]
    return [p.detach().clone() for m in modules if isinstance(m, nn.Module) for p in m.parameters()]


@pytest.mark.parametrize("name", PAIRS)
def test_every_kind_of_pair_learns(name: str) -> None:
    pair, x = PAIRS[name](), observations(64)
    fitted = quick(pair, x, epochs=40)
    loss = fitted.history["loss"].values
    assert np.isfinite(loss).all()
    assert loss[-40:].mean() < loss[:8].mean()
    assert fitted.history.sizes == {"step": 160, "epoch": 40}


@pytest.mark.parametrize("name", ["normal", "functions", "dropout", "score function"])
def test_engines_give_the_same_fit(name: str) -> None:
    x, histories = observations(40), []
    for engine in ("eager", "captured"):
        torch.manual_seed(0)
        fitted = quick(PAIRS[name](), x, engine=engine)
        assert fitted.engine == engine
        histories.append(fitted.history)
    for variable in ("loss", "kl", "reconstruction", "grad_norm"):
        np.testing.assert_allclose(histories[0][variable], histories[1][variable], rtol=1e-8)


def test_a_fit_equals_the_loop_that_one_would_write() -> None:
    """Same batches, same noise: Pyro's own loss, torch's Adam, step by step."""
    x = observations(32)
    loader = DataLoader(TensorDataset(x), batch_size=16)
    torch.manual_seed(0)
    pair = PAIRS["normal"]()
    fitted = quick(pair, loader, epochs=2, seed=4)
    torch.manual_seed(0)
    by_hand = PAIRS["normal"]()
    optimizer = torch.optim.Adam([*by_hand.model.parameters(), *by_hand.guide.parameters()], lr=1e-2)  # type: ignore[attr-defined]
    torch.manual_seed(4)
    losses = []
    for batch in (x[:16], x[16:]) * 2:
        loss = pyro.infer.TraceMeanField_ELBO().differentiable_loss(by_hand.model, by_hand.guide, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()) / 16)
    assert fitted.history["loss"].values == pytest.approx(losses, rel=1e-9)
    for given, wanted in zip(weights(pair), weights(by_hand), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-7, atol=1e-10)


def test_the_same_seed_gives_the_same_numbers() -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        losses.append(quick(PAIRS["normal"](), observations(40), seed=seed).history["loss"].values)
    assert losses[0].tolist() == losses[1].tolist()
    assert losses[0].tolist() != losses[2].tolist()


@pytest.mark.parametrize(
    "make", [lambda: PAIRS["normal"](), functions, tutorial], ids=["modules", "functions", "tutorial"]
)
def test_pairs_with_equal_names_do_not_touch_each_other(make: Callable[[], Pair]) -> None:
    """In Pyro's global store the second and third pair would keep their first weights, silently."""
    x, alone = observations(32), []
    for seed in range(3):
        torch.manual_seed(seed)
        alone.append(quick(make(), x, seed=seed).history["loss"].values)
    pairs = []
    for seed in range(3):
        torch.manual_seed(seed)
        pairs.append(make())
    fits = [quick(pair, x, seed=seed, epochs=1) for seed, pair in enumerate(pairs)]
    together = [f.history["loss"].values for f in fits]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a[: len(b)], b)


def test_process_state_is_left_as_it_was() -> None:
    pyro.param("mine", torch.tensor(3.0))
    pyro.enable_validation(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    pair = PAIRS["dropout"]()
    pair.guide.eval()  # type: ignore[attr-defined]
    torch.set_rng_state(before)
    quick(pair, observations(32))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store()) == ["mine"]
    assert not pyro.distributions.is_validation_enabled()
    assert torch.get_default_dtype() == torch.float64
    assert not pair.guide.training  # type: ignore[attr-defined]


def test_a_fitted_guide_works_in_plain_pyro() -> None:
    x = observations(32)
    fitted = quick(PAIRS["normal"](), x)
    draws = Predictive(fitted.model, guide=fitted.guide, num_samples=7)(x)
    assert draws["z"].shape == (7, 32, 2)
    before = [p.clone() for p in fitted.guide.parameters()]
    SVI(fitted.model, fitted.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    assert any(not torch.equal(a, b) for a, b in zip(before, fitted.guide.parameters(), strict=True))


def test_functions_come_back_with_their_parameters() -> None:
    pair, x = functions(), observations(32)
    fitted = quick(pair, x)
    assert list(pyro.get_param_store()) == []
    draws = Predictive(fitted.model, guide=fitted.guide, num_samples=5)(x)
    assert draws["z"].shape == (5, 32, 2)
    with fitted.parameters():
        assert sorted(pyro.get_param_store()) == ["encode", "noise", "scale", "weight"]
        assert float(pyro.param("noise").detach()) != 1.0
    assert list(pyro.get_param_store()) == []
    assert "4 fitted parameters" in repr(fitted.model)


@pytest.mark.parametrize("kind", ["numpy", "tuple", "dataset", "loader"])
def test_data_come_in_many_forms(kind: str) -> None:
    x = observations(32)
    forms = {
        "numpy": x.numpy().astype(np.float32),
        "tuple": (x,),
        "dataset": TensorDataset(x),
        "loader": DataLoader(TensorDataset(x.float()), batch_size=16, shuffle=True),
    }
    fitted = quick(PAIRS["normal"](), forms[kind])
    assert fitted.history.sizes["step"] == 6


def test_a_tuple_is_passed_as_positional_arguments() -> None:
    class Conditional(Decoder):
        def forward(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
            assert y.dtype == torch.int64
            super().forward(x)

    class ConditionalEncoder(Encoder):
        def forward(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
            super().forward(x)

    x = observations(32)
    fitted = quick(
        Pair(Conditional(), ConditionalEncoder()), (x, torch.arange(32)), validation=(x, torch.arange(32))
    )
    assert np.isfinite(fitted.history["validation"]).all()


def test_the_last_batch_may_be_smaller_and_losses_are_per_observation() -> None:
    fitted = quick(PAIRS["normal"](), observations(40), epochs=2)
    assert fitted.history.sizes["step"] == 6
    rescaled = quick(PAIRS["rescaled to 100"](), observations(40), epochs=2)
    ratio = rescaled.history["loss"].mean() / fitted.history["loss"].mean()
    assert 0.5 < float(ratio) < 2


def test_steps_end_a_fit_within_an_epoch() -> None:
    fitted = quick(PAIRS["normal"](), observations(40), epochs=None, steps=5)
    assert fitted.history.sizes == {"step": 5, "epoch": 2}
    assert quick(PAIRS["normal"](), observations(40), epochs=1, steps=50).history.sizes["step"] == 3


def test_kl_warm_up_inside_the_captured_step() -> None:
    seen: list[int] = []

    def weight(step: int) -> float:
        seen.append(step)
        return min(1.0, step / 4)

    fitted = quick(PAIRS["normal"](), observations(32), objective=ELBO(kl_weight=weight))
    history = fitted.history
    assert fitted.engine == "captured"
    assert seen == list(range(6))
    assert float(history["loss"][0]) < float(history["kl"][0] - history["reconstruction"][0])


def test_early_stopping_goes_back_to_the_best_parameters() -> None:
    x = observations(64)
    pair = PAIRS["normal"]()
    fitted = quick(pair, x[:16], epochs=500, lr=0.05, validation=x[16:], patience=10)
    validation = fitted.history["validation"].values
    assert len(validation) < 500
    assert int(validation.argmin()) == len(validation) - 11
    torch.manual_seed(7_368_787)
    with torch.no_grad():
        now = float(ELBO().estimate(pair.model, pair.guide, (x[16:],)).loss) / 48
    assert now == pytest.approx(validation.min())


def test_gradient_clipping_bounds_the_step_of_sgd() -> None:
    pair = PAIRS["normal"]()
    before = weights(pair)
    quick(pair, observations(16), epochs=None, steps=1, optimizer=torch.optim.SGD, lr=1.0, max_norm=0.5)
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(pair), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(0.5)


def test_a_schedule_advances_once_per_step() -> None:
    def freeze_after_two(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 2))

    x = observations(32)
    torch.manual_seed(0)
    again = PAIRS["normal"]()
    torch.manual_seed(0)
    other = PAIRS["normal"]()
    quick(again, x, schedule=freeze_after_two, epochs=None, steps=2)
    quick(other, x, schedule=freeze_after_two, epochs=None, steps=6)
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(other), strict=True))


@pytest.mark.parametrize("before", [True, False], ids=["frozen", "trained"])
def test_what_is_trained_stays_so_for_a_fit(before: bool) -> None:
    pair = PAIRS["normal"]()
    name, parameter = next(iter(pair.model.named_parameters()))
    parameter.requires_grad_(before)

    def change(record: EpochRecord) -> None:
        parameter.requires_grad_((record.epoch < 2) is before)

    with pytest.raises(ValueError, match=rf"a callback changed whether '.*{name}' requires a gradient"):
        quick(pair, observations(32), epochs=4, callbacks=[change])


def test_callbacks_see_every_epoch() -> None:
    records: list[EpochRecord] = []
    quick(PAIRS["normal"](), observations(32), callbacks=[records.append])
    assert [r.epoch for r in records] == [0, 1, 2]
    assert records[-1].step == 6
    assert all(math.isfinite(r.loss) for r in records)


def test_what_cannot_be_captured_falls_back_with_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    class Branching(Decoder):
        def forward(self, x: Tensor) -> None:
            if x.sum().item() > 0:
                super().forward(x)

    with caplog.at_level(logging.WARNING):
        fitted = quick(Pair(Branching(), Encoder()), observations(32))
    assert fitted.engine == "eager"
    assert len(caplog.records) == 1
    assert "runs plain Pyro at every step (engine 'eager'): tracing it failed" in caplog.text


class Exploding(Encoder):
    """Its loc becomes infinite from a call on; the captured step would not see the counter, so run it
    eagerly."""

    def __init__(self, calls: range) -> None:
        super().__init__()
        self.calls, self.count = calls, 0

    def posterior(self, h: Tensor) -> Any:
        self.count += 1
        return dist.Normal(self.loc(h) + (math.inf if self.count in self.calls else 0.0), 1.0).to_event(1)


def test_a_bad_step_is_skipped_and_counted() -> None:
    fitted = quick(Pair(Decoder(), Exploding(range(3, 5))), observations(32), engine="eager")
    assert int(fitted.history["nonfinite"].sum()) == 2
    assert all(bool(torch.isfinite(p).all()) for p in fitted.guide.parameters())


def test_three_bad_steps_end_the_fit_and_keep_the_last_good_parameters() -> None:
    pair = Pair(Decoder(), Exploding(range(4, 100)))
    with pytest.raises(
        NonFiniteError, match=r"guide's site 'z' has loc = inf at latent dimension 0, row 0.*smaller lr"
    ):
        quick(pair, observations(32), engine="eager", epochs=20)
    assert all(bool(torch.isfinite(p).all()) for p in weights(pair))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; give a positive integer"),
        ({"steps": 1.5}, "steps is 1.5; give a positive integer"),
        ({"batch_size": -1}, "batch_size is -1; give a positive integer"),
        ({"lr": 0}, "lr is 0; give a positive number"),
        ({"lr": math.nan}, "lr is nan; give a positive number"),
        ({"seed": -1}, "seed is -1; give an integer of at least 0"),
        ({"max_norm": 0.0}, "max_norm is 0.0; give a positive number"),
        ({"patience": 3}, "patience is 3 without validation data to watch; give validation="),
        ({"engine": "fast"}, "engine is 'fast'; give one of 'auto', 'captured', 'cuda-graph', 'eager'"),
        ({"lr_multiplier": "double"}, "lr_multiplier is 'double'; give None or 'matched'"),
        ({"device": "gpu"}, "device is 'gpu'; give 'auto', 'cpu'"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        quick(PAIRS["normal"](), observations(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="sees no CUDA device here"):
        quick(PAIRS["normal"](), observations(), device="cuda")


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        ([1.0, 2.0], TypeError, "data is a list; give a tensor"),
        (torch.zeros(0, 6), ValueError, r"data has shape \(0, 6\), so there is no observation in it"),
        (torch.tensor([[1.0, math.nan]]), ValueError, r"data is nan at index \(0, 1\)"),
        (np.array([["a"]]), TypeError, "data is an array of dtype <U1; give numbers"),
        ((torch.zeros(3, 6), torch.zeros(2)), ValueError, r"parts of data have \[2, 3\] observations"),
        ((torch.zeros(3, 6), [1]), TypeError, r"data\[1\] is a list"),
    ],
)
def test_bad_data_get_a_sentence(data: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        quick(PAIRS["normal"](), data)


def test_nothing_to_fit_and_nothing_to_call() -> None:
    pair = PAIRS["normal"]()
    for module in pair[:2]:
        module.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        quick(pair, observations())
    with pytest.raises(TypeError, match="guide is an int; give a Pyro program"):
        fit(pair.model, 3, observations())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="objective is the class Trace_ELBO; give an objective such as"):
        quick(pair, observations(), objective=Trace_ELBO)


def test_a_cuda_graph_needs_cuda() -> None:
    with pytest.raises(
        ValueError, match="engine is 'cuda-graph', but the fit runs on cpu; give device='cuda'"
    ):
        quick(PAIRS["normal"](), observations(), engine="cuda-graph", device="cpu")


def test_a_small_step_takes_one_thread_and_the_others_come_back() -> None:
    """On a machine that does other work as well, two threads wait for each other longer than they work."""
    before, seen = torch.get_num_threads(), list[int]()
    try:
        torch.set_num_threads(2)
        quick(PAIRS["normal"](), observations(16), callbacks=[lambda _: seen.append(torch.get_num_threads())])
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        with threads_for(2 * WORTH_A_SECOND_THREAD):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_a_fit_within_autocast_moves_the_weights_that_it_computes_with(engine: str) -> None:
    """Autocast keeps casts of weights in single precision; stale ones would leave losses where they began."""
    torch.set_default_dtype(torch.float32)
    x = observations(64).float()

    def losses() -> Any:
        torch.manual_seed(0)
        return quick(tutorial(), x, epochs=40, engine=engine, seed=0, validation=x).history

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses()
    for name in ("loss", "validation"):
        fall = exact[name].values[:4].mean() - exact[name].values[-4:].mean()
        assert fall > 0.1
        np.testing.assert_allclose(rounded[name], exact[name], atol=fall / 3)
