"""Densities of counts against 60 digits."""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_vae.models.counts import LogitBinomial, LogMeanNegativeBinomial, LogRatePoisson


def test_poisson_equals_torch_and_survives_a_rate_that_underflows():
    log_rate, counts = torch.randn(50), torch.arange(50.0)
    assert_close(LogRatePoisson(log_rate).log_prob(counts), dist.Poisson(log_rate.exp()).log_prob(counts))
    tiny = torch.tensor(-300.0, dtype=torch.float32, requires_grad=True)
    log_prob = LogRatePoisson(tiny).log_prob(torch.tensor(2.0))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(-600 - math.log(2))
    assert tiny.grad.item() == pytest.approx(2.0)


def test_binomial_equals_torch_and_sums_to_one():
    logits = torch.linspace(-60, 60, 41)[:, None].requires_grad_()
    counts = torch.arange(17.0)
    ours = LogitBinomial(16, logits).log_prob(counts)
    expected = dist.Binomial(16, logits=logits).log_prob(counts)
    assert_close(ours, expected)
    assert_close(ours.exp().sum(-1), torch.ones(41))
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert_close(gradient, (counts - 16 * logits.sigmoid()).sum(-1, keepdim=True).detach())


def exact_negative_binomial(log_mean, log_r, x):
    """The log probability with 60 digits."""
    with mpmath.workdps(60):
        mean, r = mpmath.exp(log_mean), mpmath.exp(log_r)
        gammas = mpmath.loggamma(r + x) - mpmath.loggamma(r) - mpmath.loggamma(x + 1)
        return float(gammas + r * mpmath.log(r / (r + mean)) + x * mpmath.log(mean / (r + mean)))


LOG_R = [-20.0, -3.0, 0.0, 2.0, 4.6, 4.7, 8.0, 14.0, 20.0, 35.0]


@pytest.mark.parametrize("log_mean", [-8.0, 0.0, 3.0, 7.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_negative_binomial_is_accurate_from_r_near_zero_to_the_poisson(log_mean, dtype, tolerance):
    counts = torch.tensor([0.0, 1.0, 3.0, 1000.0], dtype=dtype)
    for log_r in LOG_R:
        raw = torch.tensor(log_r, dtype=dtype, requires_grad=True)
        ours = LogMeanNegativeBinomial(torch.tensor(log_mean, dtype=dtype), raw).log_prob(counts)
        exact = torch.tensor([exact_negative_binomial(log_mean, raw.item(), x) for x in counts.tolist()])
        assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(ours.sum(), raw)
        assert gradient.isfinite()


def exact_poisson(log_rate, x):
    with mpmath.workdps(60):
        return float(x * mpmath.mpf(log_rate) - mpmath.exp(log_rate) - mpmath.loggamma(x + 1))


def exact_binomial(n, logit, x):
    with mpmath.workdps(60):
        no, yes = mpmath.log1p(mpmath.exp(logit)), mpmath.log1p(mpmath.exp(-mpmath.mpf(logit)))
        coefficient = mpmath.loggamma(n + 1) - mpmath.loggamma(x + 1) - mpmath.loggamma(n - x + 1)
        return float(coefficient - x * yes - (n - x) * no)


# What float32 knows of log x alone is 5e-7, which the distance to the mean, a few √x, multiplies.
@pytest.mark.parametrize(("x", "tolerance"), [(1e3, 5e-5), (65_535.0, 3e-4), (1e6, 3e-3), (1e8, 3e-2)])
@pytest.mark.parametrize("sds", [-3.0, 0.0, 2.0])
def test_large_counts_in_float32_are_as_exact_as_their_mean(x, tolerance, sds):
    count = torch.tensor(x, dtype=torch.float32)
    log_mean = torch.tensor(math.log(x + sds * math.sqrt(x)), dtype=torch.float32)
    poisson = LogRatePoisson(log_mean).log_prob(count).item()
    assert poisson == pytest.approx(exact_poisson(log_mean.item(), x), abs=tolerance)
    for log_r in (2.0, 14.0, 35.0):
        ours = LogMeanNegativeBinomial(log_mean, torch.tensor(log_r, dtype=torch.float32)).log_prob(count)
        exact = exact_negative_binomial(log_mean.item(), log_r, x)
        assert ours.item() == pytest.approx(exact, abs=tolerance)
    n = int(3 * x)
    logit = torch.tensor(math.log(math.exp(log_mean.item()) / (n - math.exp(log_mean.item()))))
    binomial = LogitBinomial(n, logit.float()).log_prob(count).item()
    assert binomial == pytest.approx(exact_binomial(n, logit.float().item(), x), abs=tolerance)


def test_gradients_of_large_counts_are_their_distance_to_the_mean():
    log_rate = torch.tensor(math.log(1e6), dtype=torch.float32, requires_grad=True)
    count = torch.tensor(1e6 + 1000, dtype=torch.float32)
    LogRatePoisson(log_rate).log_prob(count).backward()
    # eps of float32 times a million is 0.06
    assert log_rate.grad.item() == pytest.approx(float(count) - math.exp(log_rate.item()), abs=1.0)


@pytest.mark.parametrize("count", [0.0, 1.0, 500.0, 999.0, 1000.0])
def test_a_binomial_of_a_thousand_sums_to_one_and_has_its_ends(count):
    logits = torch.tensor(-1.3)
    whole = LogitBinomial(1000, logits).log_prob(torch.arange(1001.0))
    assert_close(whole.exp().sum(), torch.tensor(1.0))
    assert float(whole[int(count)]) == pytest.approx(exact_binomial(1000, -1.3, count), rel=1e-12)


@pytest.mark.parametrize("log_mean", [-300.0, 0.0, 80.0])
@pytest.mark.parametrize("log_r", [-200.0, 0.0, 90.0])
@pytest.mark.parametrize("count", [0.0, 1.0, 1e6])
def test_extreme_means_and_dispersions_are_finite(log_mean, log_r, count):
    parameters = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (log_mean, log_r)]
    ours = LogMeanNegativeBinomial(*parameters).log_prob(torch.tensor(count, dtype=torch.float32))
    exact = exact_negative_binomial(log_mean, min(log_r, 40.0), count)
    assert ours.item() == pytest.approx(exact, rel=1e-5, abs=1e-5)
    assert all(gradient.isfinite() for gradient in torch.autograd.grad(ours, parameters))


def test_negative_binomial_moments_and_limit():
    log_mean, log_r = torch.randn(5), torch.randn(5)
    ours = LogMeanNegativeBinomial(log_mean, log_r)
    assert_close(ours.mean, log_mean.exp())
    assert_close(ours.variance, log_mean.exp() + (2 * log_mean - log_r).exp())
    counts = torch.arange(5.0)
    beyond = LogMeanNegativeBinomial(log_mean, torch.tensor(1000.0)).log_prob(counts)
    assert_close(beyond, LogRatePoisson(log_mean).log_prob(counts))
