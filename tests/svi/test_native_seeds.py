"""A sweep on threads is the fits of its seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from pyro_vae.svi import ELBO, NonFiniteError, fit, sweep
from tests.svi.engines.native.cases import needs_compiler
from tests.svi.engines.test_many_steps import conditional, with_zeros
from tests.svi.pairs import PAIRS, Pair, observations
from tests.svi.test_vectorized import OPTIONS, amortized, maker

pytestmark = needs_compiler

SEEDS = [3, 0, 7]


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


@pytest.mark.parametrize("make", [PAIRS["functions"], conditional])
def test_plain_functions_keep_their_own_parameters(make: Any) -> None:
    data = with_zeros(3) if make is conditional else None
    assert_seeds_are_fits(make, data)


def test_members_that_differ_beyond_their_parameters_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Pair:
        pair = PAIRS["normal"]()
        pair.model.prior = dist.Normal(torch.randn(2), 1.0)  # type: ignore[attr-defined]
        return pair

    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(make), SEEDS, observations(40), engine="native", **OPTIONS)
    assert "the native step and Pyro give different numbers for seed 0" in caplog.text
    assert {fitted.engine for fitted in fits} == {"native"}  # each by itself


def test_three_bad_steps_in_a_row_are_an_error_of_fit() -> None:
    with pytest.raises(NonFiniteError, match="log p of the model's site 'x' is -inf"):
        sweep(maker(conditional), SEEDS, with_zeros(*range(0, 40, 2)), engine="native", **OPTIONS)


def test_a_schedule_that_moves_more_than_the_rate_is_left_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    options = {**OPTIONS, "schedule": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=12)}
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(amortized), SEEDS, observations(40), engine="native", **options)
    assert "each seed is fitted by itself: its schedule moves betas" in caplog.text
    assert {fitted.engine for fitted in fits} == {"captured"}


def test_what_is_not_native_is_vectorized(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(amortized), SEEDS, observations(40), **OPTIONS)
    assert "3 times 12 steps are not worth a build" in caplog.text
    assert {fitted.engine for fitted in fits} == {"vectorized"}
