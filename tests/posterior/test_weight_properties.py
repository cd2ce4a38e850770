"""What holds for any log weights: shifts, order, bounds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.special import logsumexp

from pyro_vae.posterior.importance import _summary
from pyro_vae.posterior.pareto import khat_threshold, pareto_khat, pareto_smooth

pytestmark = pytest.mark.arviz

Array = NDArray[np.float64]
WEIGHTS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(30, 300)),
    elements=st.floats(-50, 50, allow_subnormal=False),
)
SHIFTS = st.floats(-1e4, 1e4)


def summary(weights: Array) -> dict[str, Any]:
    return _summary(weights, np.zeros_like(weights))


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, SHIFTS)
def test_a_shift_moves_the_evidence_and_nothing_else(weights: Array, shift: float) -> None:
    before, after = summary(weights), summary(weights + shift)
    np.testing.assert_allclose(after["log_evidence"], before["log_evidence"] + shift, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(after["elbo"], before["elbo"] + shift, rtol=1e-9, atol=1e-8)
    for name in ("ess", "log_evidence_se"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 2**32 - 1))
def test_the_order_of_draws_does_not_count(weights: Array, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(weights, axis=1)
    before, after = summary(weights), summary(shuffled)
    for name in ("log_evidence", "elbo", "ess", "log_evidence_se"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(pareto_khat(shuffled), pareto_khat(weights), rtol=1e-7, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_ess_is_between_one_and_the_number_of_draws(weights: Array) -> None:
    ess = summary(weights)["ess"]
    assert (ess >= 1 - 1e-9).all()
    assert (ess <= weights.shape[1] * (1 + 1e-9)).all()


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_the_evidence_is_the_mean_weight_and_bounds_the_elbo(weights: Array) -> None:
    found = summary(weights)
    exact = logsumexp(weights, axis=1) - np.log(weights.shape[1])
    np.testing.assert_allclose(found["log_evidence"], exact, rtol=1e-12)
    assert (found["elbo"] <= found["log_evidence"] + 1e-9).all()  # Jensen
    assert (found["log_evidence"] <= weights.max(1) + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(0, 29), st.floats(0, 10))
def test_the_evidence_grows_with_each_weight(weights: Array, draw: int, more: float) -> None:
    larger = weights.copy()
    larger[:, draw] += more
    assert (summary(larger)["log_evidence"] >= summary(weights)["log_evidence"] - 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 3), SHIFTS)
def test_khat_does_not_know_the_constant(seed: int, spread: float, shift: float) -> None:
    """Of weights as guides have them: continuous, so that no two of a tail are equal."""
    weights = np.random.default_rng(seed).normal(0, spread, (3, 1000))
    np.testing.assert_allclose(pareto_khat(weights + shift), pareto_khat(weights), rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_khat_is_never_nan_and_smoothed_weights_add_up(weights: Array) -> None:
    smooth, khat = pareto_smooth(weights)
    assert not np.isnan(khat).any()
    np.testing.assert_allclose(logsumexp(smooth, axis=1), 0, atol=1e-8)


@settings(deadline=None)
@given(st.integers(30, 10**6), st.integers(0, 10**6))
def test_the_threshold_grows_with_the_draws(draws: int, more: int) -> None:
    assert khat_threshold(draws) <= khat_threshold(draws + more) <= 0.7
