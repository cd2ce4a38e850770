import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence
from torch.testing import assert_close

from pyro_vae.guides import LogScaleNormal
from pyro_vae.models.counts import LogitBinomial, LogMeanNegativeBinomial, LogRatePoisson
from pyro_vae.models.densities import LocationScale


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
