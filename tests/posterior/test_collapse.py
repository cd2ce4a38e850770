"""Active units and KL per latent dimension, against Gaussians."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.posterior import diagnose
from pyro_vae.posterior.collapse import active_units
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, observations

pytestmark = pytest.mark.arviz


def half_collapsed():
    """The second latent does not reach the data."""
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    return LinearGaussian(weight)


def test_a_dimension_without_effect_is_not_active():
    model = half_collapsed()
    x = observations(model, 2000)
    units = active_units(model, GaussianGuide.mean_field(model), x)
    assert units["active"].values.tolist() == [True, False]
    assert units.attrs["active_units"] == 1
    expected, noise = model.mean(x).var(0), torch.tensor([1 / 6.25, 1.0]) / 100  # of means of 100 draws
    error = ((4 * expected * noise + 2 * noise**2) / 2000).sqrt()
    assert (abs(units["activity"].values - expected.numpy()) < 5 * error.numpy()).all()
    np.testing.assert_allclose(units["kl"][1], 0, atol=1e-12)


def test_few_draws_do_not_make_a_collapsed_dimension_active():
    """With 10 draws the means vary by 0.1 from noise alone, ten times the threshold."""
    model = half_collapsed()
    units = active_units(model, GaussianGuide.mean_field(model), observations(model, 3000), draws=10)
    assert abs(units["activity"][1]) < 0.01
    assert not units["active"][1]


def test_kl_of_factorized_guides_add_up_to_the_total():
    model = dense()
    x, guide = observations(model, 50), GaussianGuide.mean_field(model)
    total = float(active_units(model, guide, x)["kl"].sum())
    loc, scale = model.mean(x), model.precision.diagonal() ** -0.5
    expected = 0.5 * (scale**2 + loc**2 - 1 - 2 * scale.log()).sum(1).mean()
    assert total == pytest.approx(float(expected))
    assert total == pytest.approx(float(diagnose(model, guide, x, 2000)["kl"].mean()), abs=0.03)


def test_marginal_kl_of_a_multivariate_normal():
    model = dense()
    x = observations(model, 20)
    units = active_units(model, GaussianGuide.exact(model), x)
    loc, variance = model.mean(x), model.covariance.diagonal()
    np.testing.assert_allclose(units["kl"], 0.5 * (variance + loc**2 - 1 - variance.log()).mean(0))


def test_two_sites_and_a_marginal_without_closed_form():
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(top + rate, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x / 2, 0.7))
            pyro.sample("rate", dist.LogNormal(0.1 * top, 0.5))

    units = active_units(model, guide, torch.randn(30), chunk=500)
    assert units["latent"].values.tolist() == ["top", "rate"]
    assert np.isfinite(units["kl"][0])
    assert np.isnan(units["kl"][1])


def test_one_observation_has_no_variance():
    model = dense()
    with pytest.raises(ValueError, match="data has 1 observations"):
        active_units(model, GaussianGuide.exact(model), observations(model, 1))


def scaled(prior_scale, noise=0.1):
    """z ~ N(0, prior_scale²), x ~ N(z / prior_scale, noise²), the exact guide; one latent is unused."""
    gain = 1 / (1 + noise**2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([prior_scale, 1.0])).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] / prior_scale, noise), obs=x)

    def guide(x):
        loc = torch.stack([x * gain * prior_scale, 0 * x], -1)
        scale = torch.tensor([prior_scale * noise * gain**0.5, 1.0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("prior_scale", [1.0, 0.05, 1e-4, 100.0])
def test_activity_is_in_units_of_the_prior(prior_scale):
    units = active_units(*scaled(prior_scale), torch.randn(500, generator=torch.Generator().manual_seed(0)))
    assert units["active"].values.tolist() == [True, False]
    assert float(units["activity"][0]) == pytest.approx(1, abs=0.3)
    assert abs(float(units["activity"][1])) < 0.01


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 100.0), dist.Cauchy(0.0, 1.0), dist.Bernoulli(0.02)])
def test_a_guide_that_returns_the_prior_is_not_active(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior)

    active = [bool(active_units(model, guide, torch.zeros(50), seed=s)["active"][0]) for s in range(10)]
    assert sum(active) <= 1


def test_a_prior_that_depends_on_the_observation_is_no_activity():
    """A conditional model, and a guide that ignores x and returns p(z | y)."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def prior(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(y, 1.0))

    def exact(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))

    y = 5 * torch.randn(400)
    x = y + 1.4 * torch.randn(400)
    assert not active_units(model, prior, (x, y))["active"].item()
    assert active_units(model, exact, (x, y))["active"].item()
