"""The reference is the posterior, says when it is not, and orders guides rightly."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.models import PPCA
from pyro_vae.posterior import from_pyro_svi, posterior_error, reference_posterior
from pyro_vae.posterior.truth import chains
from tests.posterior.gaussians import GaussianGuide, dense, diagonal, observations

pytestmark = pytest.mark.arviz


def ppca():
    weight = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    return PPCA(weight, torch.ones(5), 0.7)


def test_exact_draws_are_those_of_the_model():
    model = ppca()
    x = model.sample(3).detach()
    tree = reference_posterior(model, x, draws=8000)
    posterior = model.posterior(x)
    error = (tree["posterior"]["z"].mean("draw")[0] - posterior.mean.detach().numpy()).values
    assert (abs(error) < 5 * posterior.stddev.detach().numpy() / 8000**0.5).all()
    np.testing.assert_allclose(tree["posterior"]["z"].std("draw")[0], posterior.stddev.detach(), rtol=0.04)
    assert tree["posterior"].attrs["method"] == "exact"
    assert "convergence" not in tree


@pytest.fixture
def few_draws(monkeypatch):
    """R-hat of 600 draws is above 1.01 for some seeds though the chains agree; nobody judges by so few."""
    monkeypatch.setattr(chains, "LARGEST_RHAT", 1.1)
    monkeypatch.setattr(chains, "SMALLEST_ESS_PER_CHAIN", 50)


@pytest.mark.usefixtures("few_draws")
def test_nuts_finds_the_gaussian_posterior_and_reports_its_own_convergence():
    model = ppca()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = model.sample(1).detach()
    tree = reference_posterior(model, x, "nuts", draws=300, chains=2, warmup=100)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(pyro.get_param_store()) == []
    posterior, convergence = model.posterior(x), tree["convergence"]
    z, ess = tree["posterior"]["z"], float(convergence["ess"].min())
    error = (z.mean(("chain", "draw")) - posterior.mean.detach().numpy()).values
    assert (abs(error) < 5 * posterior.stddev.detach().numpy() / ess**0.5).all()
    np.testing.assert_allclose(z.std(("chain", "draw")), posterior.stddev.detach(), rtol=5 / ess**0.5)
    assert z.sizes["chain"] == 2
    assert float(convergence["rhat"].max()) <= 1.1
    assert 100 <= ess < 3 * z.sizes["draw"] * 2
    assert convergence["rhat"].dims == ("observation", "latent")
    assert convergence.attrs["divergences"] == 0


@pytest.mark.usefixtures("few_draws")
def test_nuts_does_not_temper_a_subsampled_plate_and_takes_constrained_latents():
    """With scale 100 the posterior would be ten times too narrow; 600 draws tell it to a quarter."""

    def model(x):
        with pyro.plate("data", 100 * len(x), subsample=torch.arange(len(x))):
            rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.LogNormal(rate.log(), 1.0), obs=x)

    tree = reference_posterior(model, torch.tensor([3.0]), draws=300, chains=2, warmup=100)
    deviation = np.log(tree["posterior"]["rate"]).std(("chain", "draw"))
    np.testing.assert_allclose(deviation, 0.5**0.5, rtol=0.25)


def test_a_reference_that_has_not_converged_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 6.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)  # two modes that no chain crosses

    # All chains begin on the same side for every one of 20 observations at one seed in a million.
    with pytest.raises(ValueError, match=r"NUTS has not converged: largest R-hat .* \(at most 1.01\)"):
        reference_posterior(model, torch.full((20,), 5.0), draws=50, chains=2, warmup=30)


def test_errors_put_guides_into_the_right_order():
    model = dense()
    x = observations(model, 6)
    truth = from_pyro_svi(model, GaussianGuide.exact(model), x, 4000, seed=1)
    errors = [
        posterior_error(from_pyro_svi(model, GaussianGuide.exact(model, s), x, 2000), truth)
        for s in (1.0, 0.85, 0.5)
    ]
    ratios = [float(error["sd_ratio"].mean()) for error in errors]
    np.testing.assert_allclose(ratios, [1.0, 0.85, 0.5], atol=0.02)
    distances = [float(error["wasserstein"].mean()) for error in errors]
    assert distances[0] < distances[1] / 2 < distances[2] / 4
    np.testing.assert_allclose(distances[2], 0.5 * (2 / np.pi) ** 0.5, atol=0.02)
    assert float(errors[0]["mean_error"].max()) < 5 * (1 / 2000 + 1 / 4000) ** 0.5


def test_error_of_a_shifted_guide_and_matching_by_label():
    model = diagonal()
    x = observations(model, 5)
    truth = from_pyro_svi(model, GaussianGuide.exact(model), x, 3000, seed=1, observations=[4, 1])
    guide = GaussianGuide.exact(model)
    with torch.no_grad():
        guide.gain *= 2
    error = posterior_error(from_pyro_svi(model, guide, x, 3000), truth)
    assert sorted(error["observation"].values) == [1, 4]
    expected = model.mean(x) / model.covariance.diagonal().sqrt()
    for label in (1, 4):
        np.testing.assert_allclose(
            error["mean_error"].sel(observation=label), expected[label].abs(), atol=5 * (2 / 3000) ** 0.5
        )
    np.testing.assert_allclose(error["wasserstein"], error["mean_error"], atol=0.13)


class TestErrors:
    def test_no_exact_posterior(self):
        with pytest.raises(ValueError, match="has no posterior"):
            reference_posterior(lambda x: None, torch.ones(2), "exact")

    def test_one_chain_cannot_agree_with_another(self):
        with pytest.raises(ValueError, match="chains is 1"):
            reference_posterior(ppca(), torch.ones(2, 5), chains=1)

    def test_unknown_method(self):
        with pytest.raises(ValueError, match="method is 'hmc'; give 'auto', 'exact' or 'nuts'"):
            reference_posterior(ppca(), torch.ones(2, 5), "hmc")

    def test_nothing_in_common(self):
        model = diagonal()
        x = observations(model, 4)
        a, b = (
            from_pyro_svi(model, GaussianGuide.exact(model), x, 40, observations=rows) for rows in ([0], [1])
        )
        with pytest.raises(ValueError, match="no observation and latent in common"):
            posterior_error(a, b)
