"""Approximation and amortization gaps against closed forms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae.posterior.gaps import inference_gaps
from pyro_vae.posterior.readings import gaps_reading
from tests.posterior.gaussians import GaussianGuide, dense, diagonal, mean_field_gap, observations

pytestmark = pytest.mark.arviz


def kl_from_posterior(model, x, loc, covariance):
    q = dist.MultivariateNormal(loc, covariance)
    p = dist.MultivariateNormal(model.mean(x), model.covariance)
    return torch.distributions.kl_divergence(q, p).detach().numpy()


def test_the_best_mean_field_guide_loses_by_its_family_only():
    model = dense()
    x = observations(model, 12)
    gaps = inference_gaps(model, GaussianGuide.mean_field(model), x, draws=4000)
    np.testing.assert_allclose(gaps["approximation_gap"].mean(), mean_field_gap(model), atol=0.02)
    np.testing.assert_allclose(gaps["amortization_gap"], 0, atol=0.02)
    np.testing.assert_allclose(gaps["log_evidence"], model.log_evidence(x), atol=0.1)


def test_a_bad_encoder_loses_by_amortization():
    model = dense()
    x = observations(model, 12)
    guide = GaussianGuide.mean_field(model)
    with torch.no_grad():
        guide.gain *= 0.7
        guide.scale *= 0.6
    gaps = inference_gaps(model, guide, x, draws=4000)
    total = kl_from_posterior(model, x, x @ guide.gain, guide.scale.square().diag())
    np.testing.assert_allclose(gaps["approximation_gap"].mean(), mean_field_gap(model), atol=0.02)
    np.testing.assert_allclose(gaps["amortization_gap"], total - mean_field_gap(model), atol=0.15)
    np.testing.assert_allclose(
        gaps["approximation_gap"] + gaps["amortization_gap"], gaps["log_evidence"] - gaps["elbo"]
    )


def test_a_full_covariance_reaches_the_exact_posterior():
    model = dense()
    x = observations(model, 8)
    wrong = torch.linalg.cholesky(0.3 * torch.eye(3) + 0.1)
    gaps = inference_gaps(model, GaussianGuide(model, scale_tril=wrong), x)
    np.testing.assert_allclose(gaps["elbo_local"], model.log_evidence(x), atol=1e-3)
    np.testing.assert_allclose(gaps["approximation_gap"], 0, atol=1e-3)
    assert (gaps["amortization_gap"] > 0.1).all()


def test_blocks_of_observations():
    model = dense()
    x = observations(model, 7)
    gaps = inference_gaps(model, GaussianGuide.exact(model, 0.5), x, steps=150, chunk=50)
    np.testing.assert_allclose(gaps["elbo_local"], model.log_evidence(x), atol=0.01)
    assert gaps["observation"].values.tolist() == list(range(7))
    assert gaps.attrs["latent_dim"] == 3


def test_constrained_support():
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.LogNormal(rate.log(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(torch.zeros_like(x), 1.0))

    x = torch.tensor([0.5, 4.0])
    gaps = inference_gaps(model, guide, x)
    np.testing.assert_allclose(gaps["elbo_local"], dist.LogNormal(0.0, 2**0.5).log_prob(x), atol=1e-3)


def test_guides_with_parameters_for_each_observation():
    """The mean-field autoguide before its training: all of what it loses can be won back locally."""
    model = diagonal()
    x = observations(model, 5)
    guide = AutoNormal(model)
    guide(x)
    gaps = inference_gaps(model, guide, x)
    np.testing.assert_allclose(gaps["elbo_local"], model.log_evidence(x), atol=1e-3)


def test_networks_that_do_not_broadcast():
    decoder = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 1, 3))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(3), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(9, 2)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.9).to_event(1))

    model, guide = Model(), Guide()
    gaps = inference_gaps(model, guide, torch.randn(4, 1, 3, 3), steps=200)
    weight = decoder[1].weight.detach().flatten(1)
    precision = torch.eye(2) + weight @ weight.T
    expected = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    np.testing.assert_allclose(gaps["approximation_gap"], expected, atol=0.05)
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *guide.parameters()))


def two_modes(x):
    """log p(x) = 0; posterior modes at ±5."""
    sides = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-5.0, 5.0]), torch.ones(2))
    )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 5.0))
        pyro.factor("target", sides.log_prob(z) - dist.Normal(0.0, 5.0).log_prob(z))


def beside(far):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(5.0 + far * torch.ones(len(x)), 1.0))

    return guide


def test_a_mode_that_the_guide_does_not_visit_belongs_to_the_family():
    gaps = inference_gaps(two_modes, beside(0.0), torch.zeros(4))
    np.testing.assert_allclose(gaps["approximation_gap"], np.log(2), atol=0.06)  # four standard errors
    np.testing.assert_allclose(gaps["amortization_gap"], 0, atol=0.01)


def test_an_optimum_that_is_not_reached_gives_no_gap():
    """Thirty standard deviations off, with a step."""
    model = dense()
    x = observations(model, 3)
    guide = GaussianGuide.exact(model)
    with torch.no_grad():
        guide.gain += 30.0
    far = inference_gaps(model, guide, x, steps=6)
    assert not far["converged"].any()
    assert np.isnan(far["approximation_gap"]).all()
    assert np.isnan(far["amortization_gap"]).all()
    assert "q* has not converged for any of 3 observations" in gaps_reading(far)
    near = inference_gaps(model, guide, x)
    assert near["converged"].all()
    np.testing.assert_allclose(near["approximation_gap"], 0, atol=1e-3)


class TestErrors:
    @pytest.mark.parametrize("arguments", [{"steps": 0}, {"particles": 0}, {"draws": 5}])
    def test_numbers_that_make_no_sense(self, arguments):
        model = diagonal()
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} is "):
            inference_gaps(model, GaussianGuide.exact(model), observations(model, 2), **arguments)

    def test_a_family_that_is_not_normal(self):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("rate", dist.Gamma(x + 2.0, 2.0))

        with pytest.raises(
            ValueError, match="the guide draws 'rate' from Gamma; local optimization knows Normal"
        ):
            inference_gaps(model, guide, torch.ones(2))

    def test_sites_that_depend_on_each_other(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                w = pyro.sample("w", dist.Normal(x / 2, 1.0))
                pyro.sample("z", dist.Normal(w / 2, 1.0))

        with pytest.raises(ValueError, match="the guide's 'z' depends on its other draws"):
            inference_gaps(model, guide, torch.ones(2))
