import math
import pickle

import mpmath
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_vae.guides import LogScaleNormal
from pyro_vae.models.densities import LocationScale, LogitBinomial, LogMeanNegativeBinomial, LogRatePoisson


def standard_normal(dtype=torch.float64):
    return dist.Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))


def standard_student():
    return dist.StudentT(torch.tensor(5.0), torch.tensor(0.0), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("standard", "reference"), [(standard_normal(), stats.norm()), (standard_student(), stats.t(5.0))]
)
def test_location_scale_density_and_moments(standard, reference):
    loc, log_scale = torch.randn(4, 1), torch.randn(3)
    ours = LocationScale(standard, loc, log_scale)
    x = torch.randn(4, 3)
    expected = reference.logpdf((x - loc) / log_scale.exp()) - log_scale.numpy()
    assert_close(ours.log_prob(x), torch.as_tensor(expected))
    assert_close(ours.mean, loc.expand(4, 3))
    assert_close(ours.variance, (reference.var() * log_scale.exp() ** 2).expand(4, 3))
    assert_close(ours.stddev, ours.variance.sqrt())


@pytest.mark.parametrize("log_scale", [-1000.0, -170.0, -80.0, -40.0, 0.0, 40.0, 80.0])
def test_location_scale_keeps_value_and_gradient_where_the_scale_squared_leaves_float32(log_scale):
    raw = torch.tensor(log_scale, dtype=torch.float32, requires_grad=True)
    loc = torch.tensor(2.0, dtype=torch.float32)
    log_prob = LocationScale(standard_normal(torch.float32), loc, raw).log_prob(loc)
    log_prob.backward()
    assert log_prob.item() == pytest.approx(-log_scale - 0.5 * math.log(2 * math.pi))
    assert raw.grad.item() == pytest.approx(-1.0)


def test_location_scale_draws_follow_its_density():
    ours = LocationScale(standard_normal(), torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0]))
    draws = ours.sample(torch.Size([20_000]))
    for i in range(2):
        assert stats.kstest(draws[:, i], stats.norm(ours.loc[i], ours.scale[i]).cdf).pvalue > 1e-3


def test_location_scale_draws_are_differentiable():
    loc, log_scale = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)
    LocationScale(standard_normal(), loc, log_scale).rsample(torch.Size([5])).sum().backward()
    assert_close(loc.grad, torch.full((3,), 5.0))
    assert log_scale.grad is not None


@pytest.mark.parametrize(
    "distribution",
    [
        LocationScale(standard_normal(), torch.tensor([1.0, 2.0]), torch.tensor(0.3)),
        LogRatePoisson(torch.tensor([0.1, 2.0])),
        LogMeanNegativeBinomial(torch.tensor([0.1, 2.0]), torch.tensor([0.5, 7.0])),
        LogitBinomial(4, torch.tensor([0.1, -2.0])),
    ],
)
def test_expanding_and_pickling_keep_the_density(distribution):
    value = torch.tensor([1.0, 3.0])
    expected = distribution.log_prob(value)
    expanded = distribution.expand([5, 2])
    assert expanded.batch_shape == (5, 2)
    assert_close(expanded.log_prob(value), expected.expand(5, 2))
    assert expanded.sample().shape == (5, 2)
    assert_close(pickle.loads(pickle.dumps(distribution)).log_prob(value), expected)
    assert_close(distribution.to_event(1).mask(False).log_prob(value), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("distribution", "impossible"),
    [
        (LogRatePoisson(torch.zeros(())), -1.0),
        (LogMeanNegativeBinomial(torch.zeros(()), torch.zeros(())), 0.5),
        (LogitBinomial(2, torch.zeros(())), 3.0),
        (LocationScale(standard_normal(), torch.zeros(()), torch.zeros(())), math.nan),
    ],
)
def test_validation_refuses_values_outside_the_support(distribution, impossible):
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(torch.tensor(impossible))


@pytest.mark.parametrize("p_class", [dist.Normal, LogScaleNormal])
def test_kl_of_a_normal_to_location_scale(p_class):
    log_scales = torch.randn(2, 4)
    loc_p, loc_q = torch.randn(2, 4)
    p = p_class(loc_p, log_scales[0].exp() if p_class is dist.Normal else log_scales[0])
    q = LocationScale(standard_normal(), loc_q, log_scales[1])
    expected = kl_divergence(
        torch.distributions.Normal(loc_p, log_scales[0].exp()),
        torch.distributions.Normal(loc_q, log_scales[1].exp()),
    )
    assert_close(kl_divergence(p, q), expected)
    assert_close(kl_divergence(p.to_event(1), q.to_event(1)), expected.sum())


def test_kl_to_another_family_is_left_to_sampling():
    with pytest.raises(NotImplementedError):
        kl_divergence(
            dist.Normal(0.0, 1.0), LocationScale(standard_student(), torch.zeros(()), torch.zeros(()))
        )


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
@pytest.mark.parametrize(
    ("dtype", "largest", "tolerance"),
    # log 1000! alone is 5,912, which float32 rounds to 5e-4
    [(torch.float64, 1000.0, 1e-11), (torch.float32, 40.0, 2e-5)],
)
def test_negative_binomial_is_accurate_from_r_near_zero_to_the_poisson(log_mean, dtype, largest, tolerance):
    counts = torch.tensor([0.0, 1.0, 3.0, largest], dtype=dtype)
    for log_r in LOG_R:
        raw = torch.tensor(log_r, dtype=dtype, requires_grad=True)
        ours = LogMeanNegativeBinomial(torch.tensor(log_mean, dtype=dtype), raw).log_prob(counts)
        exact = torch.tensor([exact_negative_binomial(log_mean, log_r, x) for x in counts.tolist()])
        assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(ours.sum(), raw)
        assert gradient.isfinite()


def test_negative_binomial_moments_and_limit():
    log_mean, log_r = torch.randn(5), torch.randn(5)
    ours = LogMeanNegativeBinomial(log_mean, log_r)
    assert_close(ours.mean, log_mean.exp())
    assert_close(ours.variance, log_mean.exp() + (2 * log_mean - log_r).exp())
    counts = torch.arange(5.0)
    beyond = LogMeanNegativeBinomial(log_mean, torch.tensor(1000.0)).log_prob(counts)
    assert_close(beyond, LogRatePoisson(log_mean).log_prob(counts))
