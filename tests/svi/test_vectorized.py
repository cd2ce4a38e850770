"""A sweep is the fits of its seeds, however it is computed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.svi import ELBO, Fit, fit, sweep
from tests.svi.pairs import PAIRS, Pair, observations

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


CASES: list[tuple[Any, dict[str, Any]]] = [
    (amortized, {}),
    (amortized, {"max_norm": 0.5}),
    (amortized, {"steps": 5}),
    (amortized, {"objective": ELBO(2, kl_weight=lambda step: min(1.0, step / 8))}),
    (PAIRS["normal"], {}),
    (PAIRS["functions"], {}),
]


@pytest.mark.parametrize(("make", "options"), CASES)
def test_seeds_fitted_together_are_the_fits_of_each(make: Any, options: dict[str, Any]) -> None:
    seeds = [3, 0, 7]
    together = sweep(maker(make), seeds, observations(40), **{**OPTIONS, **options})
    for a, b in zip(together, one_by_one(make, seeds, **options), strict=True):
        assert (a.engine, b.engine, a.seed) == ("vectorized", "captured", b.seed)
        for name in ("loss", "kl", "reconstruction", "grad_norm"):
            np.testing.assert_allclose(a.history[name], b.history[name], rtol=1e-8, err_msg=name)
        if isinstance(a.guide, nn.Module):
            for p, q in zip(a.guide.parameters(), b.guide.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (PAIRS["dropout"], {}, "only normal draws can be vectorized"),
        (PAIRS["rescaled to 100"], {}, "aten.randperm"),
        (PAIRS["batch norm"], {}, "only normal draws can be vectorized"),
        (amortized, {"engine": "eager"}, "engine given"),
    ],
)
def test_what_cannot_be_vectorized_is_fitted_one_by_one(
    make: Any, options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(make), [1, 2], observations(40), **{**OPTIONS, **options})
    assert reason in caplog.text
    for a, b in zip(fits, one_by_one(make, [1, 2], **options), strict=True):
        np.testing.assert_array_equal(a.history["loss"], b.history["loss"])


def test_pairs_that_differ_beyond_their_parameters_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A fixed random tensor of the first pair would be used for all."""

    def make() -> Pair:
        pair = PAIRS["normal"]()
        pair.model.prior = dist.Normal(torch.randn(2), 1.0)  # type: ignore[attr-defined]
        return pair

    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(make), [1, 2], observations(40), **OPTIONS)
    assert "different numbers for seed 2" in caplog.text
    assert {fitted.engine for fitted in fits} == {"captured"}


def test_a_step_that_is_not_finite_is_left_to_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="pyro_vae"):
        fits = sweep(maker(amortized), [1, 2], observations(40), **{**OPTIONS, "lr": 1e150, "steps": 2})
    assert len(fits) == 2


def test_process_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sweep(maker(amortized), [1, 2], observations(40), **OPTIONS)
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
