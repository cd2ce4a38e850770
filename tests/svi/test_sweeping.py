"""A sweep is the fits of its seeds, however it is computed."""

from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.optim import lr_scheduler as schedules

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.svi import ELBO, Fit, NonFiniteError, fit, sweep
from pyro_vae.svi.engines import captured as captured_engine
from tests.svi.engines.native.cases import needs_compiler
from tests.svi.engines.test_many_steps import conditional, with_zeros
from tests.svi.pairs import PAIRS, Pair, observations

OWN_SEEDS = True


SEEDS = [3, 0, 7]
OPTIONS = {"epochs": 4, "batch_size": 16, "lr": 1e-2, "progress": False}


def amortized() -> Pair:
    model = VAE(nn.Linear(2, 6), 2, "bernoulli")
    return Pair(model, AmortizedNormal(model, nn.Linear(6, 5)))


def maker(make: Callable[[], Pair]) -> Callable[[], Any]:
    return lambda: make()[:2]


def one_by_one(make: Callable[[], Pair], seeds: list[int], **options: Any) -> list[Fit]:
    fits = []
    for seed in seeds:
        torch.manual_seed(seed)
        pair = make()
        fits.append(fit(pair.model, pair.guide, observations(40), seed=seed, **{**OPTIONS, **options}))
    return fits


def assert_seeds_are_fits(make: Callable[[], Pair], data: Any = None, **options: Any) -> None:
    data = observations(40) if data is None else data
    options = {**OPTIONS, **options}
    together = sweep(maker(make), SEEDS, data, engine="native", **options)
    for seed, ours in zip(SEEDS, together, strict=True):
        torch.manual_seed(seed)
        theirs = fit(*make()[:2], data, seed=seed, engine="captured", **options)
        assert (ours.engine, ours.seed) == ("native", seed)
        for name in ours.history:
            np.testing.assert_allclose(ours.history[name], theirs.history[name], rtol=1e-8, err_msg=str(name))
        if isinstance(ours.guide, nn.Module):
            for p, q in zip(ours.guide.parameters(), theirs.guide.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 5, "max_norm": 0.5},
        {"objective": ELBO(2, kl_weight=lambda step: min(1.0, step / 8))},
        {"lr_multiplier": "matched", "schedule": lambda o: schedules.StepLR(o, 2, 0.5)},
        {"optimizer": torch.optim.Adam, "batch_size": 8},
    ],
    ids=" ".join,
)
def test_seeds_on_threads_are_the_fits_of_each(options: dict[str, Any]) -> None:
    assert_seeds_are_fits(amortized, **options)


@needs_compiler
@pytest.mark.parametrize("make", [PAIRS["functions"], conditional])
def test_plain_functions_keep_their_own_parameters(make: Any) -> None:
    data = with_zeros(3) if make is conditional else None
    assert_seeds_are_fits(make, data)


@needs_compiler
def test_pairs_that_differ_beyond_their_parameters_have_graphs_of_their_own() -> None:
    """A fixed random tensor of the first pair would be used for all."""

    def make() -> Pair:
        pair = PAIRS["normal"]()
        pair.model.prior = dist.Normal(torch.randn(2), 1.0)  # type: ignore[attr-defined]
        return pair

    assert_seeds_are_fits(make)


@needs_compiler
def test_three_bad_steps_in_a_row_are_an_error_of_fit() -> None:
    with pytest.raises(NonFiniteError, match="log p of the model's site 'x' is -inf"):
        sweep(maker(conditional), SEEDS, with_zeros(*range(0, 40, 2)), engine="native", **OPTIONS)


@needs_compiler
def test_a_schedule_that_moves_more_than_the_rate_is_left_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    options = {**OPTIONS, "schedule": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=12)}
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(amortized), SEEDS, observations(40), engine="native", **options)
    assert "each seed is fitted by itself: its schedule moves betas" in caplog.text
    assert {fitted.engine for fitted in fits} == {"captured"}


@needs_compiler
def test_the_graph_is_compared_with_pyro_while_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns with Pyro and with torch's stream, and draw from streams of their own."""
    monkeypatch.setattr("pyro_vae.svi.engines.many_steps.STEPS_BETWEEN_VERIFICATIONS", 3)
    assert_seeds_are_fits(amortized, epochs=9)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (PAIRS["dropout"], {"engine": "native"}, "aten.bernoulli"),
        (amortized, {"engine": "eager"}, "engine='eager' given"),
        (amortized, {"validation": observations(8)}, "validation given"),
        (amortized, {}, "2 times 12 steps are not worth a build"),
    ],
    ids=["not native", "by name", "another option", "short"],
)
def test_other_seeds_are_fitted_one_by_one(
    make: Any, options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(make), [1, 2], observations(40), **{**OPTIONS, **options})
    assert reason in caplog.text
    for a, b in zip(fits, one_by_one(make, [1, 2], **options), strict=True):
        np.testing.assert_array_equal(a.history["loss"], b.history["loss"])


def with_running_statistics() -> Pair:
    model = VAE(nn.Linear(2, 6), 2, "bernoulli")
    return Pair(model, AmortizedNormal(model, nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))))


def of_odd_width() -> Pair:
    width = int(torch.randint(1, 9, ())) * 2 + 1
    model = VAE(nn.Sequential(nn.Linear(2, width), nn.Linear(width, 6)), 2, "bernoulli")
    return Pair(model, AmortizedNormal(model, nn.Linear(6, 5)))


@pytest.mark.parametrize(
    ("make", "graphs"),
    [(amortized, 1), (PAIRS["functions"], 1), (with_running_statistics, 2), (of_odd_width, 2)],
)
def test_short_fits_share_a_graph_where_it_gives_their_numbers(
    make: Any, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[Any] = []
    capture = captured_engine.capture_step
    monkeypatch.setattr(
        captured_engine, "capture_step", lambda *given: captured.append(capture(*given)) or captured[-1]
    )
    options: dict[str, Any] = {"batch_size": 20}
    fits = sweep(maker(make), [1, 2], observations(40), **{**OPTIONS, **options})
    assert len(captured) == graphs
    for a, b in zip(fits, one_by_one(make, [1, 2], **options), strict=True):
        assert (a.engine, b.engine) == ("captured", "captured")
        np.testing.assert_array_equal(a.history["loss"], b.history["loss"])
        if isinstance(b.guide, nn.Module):
            for p, q in zip(a.guide.state_dict().values(), b.guide.state_dict().values(), strict=True):
                assert torch.equal(p, q)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["dropout", "functions"])
def test_seeds_in_processes_are_the_fits_of_each(name: str) -> None:
    seeds, options = [1, 2], {"engine": "eager"}
    with joblib.parallel_config(n_jobs=2):
        fits = sweep(maker(PAIRS[name]), seeds, observations(40), **OPTIONS, **options)
    for a, b in zip(fits, one_by_one(PAIRS[name], seeds, **options), strict=True):
        assert (a.engine, a.seed) == ("eager", b.seed)
        np.testing.assert_allclose(a.history["loss"], b.history["loss"], rtol=1e-10)


def test_process_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sweep(maker(amortized), [1, 2], observations(40), engine="native", **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_seed_is_a_fit() -> None:
    (fitted,) = sweep(maker(amortized), [4], observations(40), **OPTIONS)
    assert fitted.engine == "captured"


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="sweep takes seeds"):
        sweep(maker(amortized), [1, 2], observations(), seed=3)
    with pytest.raises(ValueError, match=r"seeds\[0\] is -1"):
        sweep(maker(amortized), [-1, 2], observations())
    with pytest.raises(ValueError, match="lr is 0"):
        sweep(maker(amortized), [1, 2], observations(), lr=0)


def regression() -> Any:
    class Regression(PyroModule):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal((x * w).sum(-1), 0.5), obs=y)

    model = Regression()
    return Pair(model, AutoDiagonalNormal(model, init_scale=0.1))


@needs_compiler
def test_a_global_latent_on_minibatches_is_that_of_each_fit() -> None:
    x = torch.randn(48, 3)
    data = (x, x.sum(-1))
    assert_seeds_are_fits(regression, data)


@needs_compiler
def test_parameters_for_the_rows_of_a_batch_are_refused_by_a_sweep() -> None:
    def pair() -> Any:
        def model(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return Pair(model, AutoNormal(model))

    with pytest.raises(ValueError, match="parameters of its own for each row of latent 'z'"):
        sweep(maker(pair), [0, 1], torch.randn(40), engine="native", **OPTIONS)


@needs_compiler
@pytest.mark.parametrize("engine", ["native", "captured"])
def test_pairs_that_share_what_is_trained_are_refused(engine: str) -> None:
    pair = amortized()[:2]
    with pytest.raises(ValueError, match="was in an earlier pair; make new modules in every call"):
        sweep(lambda: pair, [0, 1], observations(40), engine=engine, **OPTIONS)


@needs_compiler
@pytest.mark.parametrize("engine", ["native", "captured"])
def test_functions_that_share_a_module_by_their_closures_are_refused(engine: str) -> None:
    encoder = torch.nn.Linear(3, 2)

    def make_pair() -> tuple[Any, Any]:
        def model(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 3]).to_event(1), obs=x)

        def guide(x: torch.Tensor) -> None:
            pyro.module("encoder", encoder)
            loc, raw = encoder(x).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, raw.exp()))

        return model, guide

    sentence = "make_pair gives the function guide whose parameter 'encoder.weight' was in an earlier pair"
    with pytest.raises(ValueError, match=sentence):
        sweep(make_pair, [0, 1], torch.randn(40, 3), engine=engine, **OPTIONS)
    encoder.requires_grad_(False)  # what nobody trains may be shared
    with pytest.raises(ValueError, match="nothing to fit"):
        sweep(make_pair, [0, 1], torch.randn(40, 3), engine=engine, **OPTIONS)


@needs_compiler
def test_an_elbo_of_pyro_is_taken_as_by_a_fit() -> None:
    fits = sweep(
        maker(amortized), [0, 1], observations(40), engine="native", objective=Trace_ELBO(), **OPTIONS
    )
    torch.manual_seed(0)
    alone = fit(*amortized()[:2], observations(40), engine="eager", objective=Trace_ELBO(), **OPTIONS)
    np.testing.assert_allclose(fits[0].history["loss"], alone.history["loss"], rtol=1e-7)
