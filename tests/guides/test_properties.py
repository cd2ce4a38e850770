"""What holds for any argument: of the scale maps and of the Normal that they feed."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from pyro_vae import scales
from pyro_vae.guides import LogScaleNormal

F64 = torch.float64
NAMES = st.sampled_from(scales.names())
BIJECTIVE = st.sampled_from([name for name in scales.names() if scales.get(name).bijective])
RAWS = st.floats(-1e4, 1e4)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def number(value: float, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


@settings(deadline=None)
@given(BIJECTIVE, st.floats(-30, 30))
def test_inv_undoes_a_map(name: str, raw: float) -> None:
    scale_map = scales.get(name)
    scale = scale_map(number(raw))
    assume(scale_map.slope(number(raw)).abs() > 1e-6)  # flatter, and σ no longer tells raw
    again = scale_map(scale_map.inv(scale))
    torch.testing.assert_close(again, scale, rtol=1e-9, atol=0)


@settings(deadline=None)
@given(BIJECTIVE, RAWS, RAWS)
def test_a_larger_raw_is_no_smaller_scale(name: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    scale_map = scales.get(name)
    assert scale_map.log_scale(number(low)) <= scale_map.log_scale(number(high)) + 1e-12


@settings(deadline=None)
@given(NAMES, RAWS, DTYPES)
def test_sigma_is_the_exponential_of_its_log_to_the_last_bit(
    name: str, raw: float, dtype: torch.dtype
) -> None:
    scale_map, value = scales.get(name), number(raw, dtype)
    assert torch.equal(scale_map(value), scale_map.log_scale(value).exp())


@settings(deadline=None)
@given(NAMES, RAWS, DTYPES)
def test_log_scale_and_its_gradient_are_finite(name: str, raw: float, dtype: torch.dtype) -> None:
    value = number(raw, dtype).requires_grad_()
    log_scale = scales.get(name).log_scale(value)
    (gradient,) = torch.autograd.grad(log_scale, value)
    assert log_scale.isfinite()
    assert gradient.isfinite()


@settings(deadline=None)
@given(NAMES, st.floats(-50, 50))
def test_slope_is_the_gradient_of_log_scale(name: str, raw: float) -> None:
    scale_map, value = scales.get(name), number(raw).requires_grad_()
    (gradient,) = torch.autograd.grad(scale_map.log_scale(value), value)
    torch.testing.assert_close(scale_map.slope(number(raw)), gradient, rtol=1e-7, atol=1e-12)


LOCS, LOG_SCALES = st.floats(-100, 100), st.floats(-60, 60)


@settings(deadline=None)
@given(LOCS, LOG_SCALES, st.floats(-8, 8))
def test_log_prob_is_the_formula(loc: float, log_scale: float, eps: float) -> None:
    """Against mpmath, at the very number that the value rounds to."""
    mpmath = pytest.importorskip("mpmath")
    q = LogScaleNormal(number(loc), number(log_scale))
    value = number(loc) + number(log_scale).exp() * eps
    with mpmath.workdps(60):
        z = (mpmath.mpf(value.item()) - mpmath.mpf(loc)) * mpmath.exp(-mpmath.mpf(log_scale))
        exact = -(z**2) / 2 - mpmath.mpf(log_scale) - mpmath.log(2 * mpmath.pi) / 2
    assert q.log_prob(value).item() == pytest.approx(float(exact), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(LOCS, LOG_SCALES, LOCS, LOG_SCALES)
def test_kl_is_at_least_zero_and_zero_to_itself(
    loc: float, log_scale: float, other: float, log_other: float
) -> None:
    q = LogScaleNormal(number(loc), number(log_scale))
    p = LogScaleNormal(number(other), number(log_other))
    assert kl_divergence(q, p) >= 0
    assert kl_divergence(q, LogScaleNormal(number(loc), number(log_scale))) == 0


@settings(deadline=None)
@given(LOCS, LOG_SCALES)
def test_entropy_is_the_formula_and_minus_the_mean_log_prob(loc: float, log_scale: float) -> None:
    q = LogScaleNormal(number(loc), number(log_scale))
    assert q.entropy().item() == pytest.approx(log_scale + 0.5 * math.log(2 * math.pi * math.e), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(LOCS, st.floats(-20, 20), st.integers(0, 2**32))
def test_a_draw_knows_its_density(loc: float, log_scale: float, seed: int) -> None:
    """log q of an own draw is −ε²/2 − log σ − log √2π, however small σ is beside μ."""
    q = LogScaleNormal(number(loc), number(log_scale))
    torch.manual_seed(seed)
    log_prob = q.log_prob(q.rsample())
    torch.manual_seed(seed)
    eps = torch.randn((), dtype=F64)
    assert log_prob.item() == pytest.approx(
        float(-(eps**2) / 2 - log_scale - 0.5 * math.log(2 * math.pi)), rel=1e-12
    )
