"""Pareto fits to many rows at once say what ArviZ says of each of them."""

import numpy as np
import pytest
from arviz_stats.base import array_stats

from pyro_vae.posterior.pareto import pareto_smooth


@pytest.fixture
def rng():
    """A stream for each test, so that none hangs on those before it."""
    return np.random.default_rng(0)


@pytest.mark.parametrize("draws", [30, 100, 225, 226, 1000, 5000])
@pytest.mark.parametrize(
    "made",
    [
        lambda u: -np.log(u),  # an exponential of weights: k = 1
        lambda u: -0.4 * np.log(u),
        lambda u: 5 * np.log(u),  # bounded weights: k < 0
        lambda u: np.where(u < 0.5, -np.inf, -np.log(u)),
        lambda u: -30 * np.log(u),
    ],
    ids=["heavy", "light", "bounded", "half of them zero", "hopeless"],
)
def test_weights_are_smoothed_as_by_arviz(draws, made, rng):
    log_weight = made(rng.uniform(size=(7, draws))) + rng.normal(size=(7, 1)) * 100
    smooth, khat = pareto_smooth(log_weight)
    wanted, wanted_khat = array_stats.psislw(-log_weight, axis=-1)
    np.testing.assert_allclose(smooth, wanted, rtol=1e-9, atol=1e-9)
    judged = np.isfinite(khat)  # where one draw does not carry half of the sum
    np.testing.assert_allclose(khat[judged], wanted_khat[judged], rtol=1e-9, atol=1e-9)


def test_a_row_is_judged_alike_whoever_is_beside_it(rng):
    log_weight = rng.normal(size=(500, 300))
    log_weight[3] = np.nan
    smooth, khat = pareto_smooth(log_weight)
    for row in (0, 3, 499):
        alone, alone_khat = pareto_smooth(log_weight[row : row + 1])
        np.testing.assert_allclose(smooth[row], alone[0], rtol=1e-12)
        np.testing.assert_allclose(khat[row], alone_khat[0], rtol=1e-12)
