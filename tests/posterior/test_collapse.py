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
