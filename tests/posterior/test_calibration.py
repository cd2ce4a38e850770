"""Simulation-based calibration finds the width of a guide, and knows when it is right."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA
from pyro_vae.posterior import calibrate, coverage_reading
from tests.posterior.gaussians import GaussianGuide, dense, diagonal, observations

pytestmark = pytest.mark.arviz


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.5])
def test_coverage_of_a_guide_with_scaled_standard_deviation(factor):
    model = dense()
    result = calibrate(model, GaussianGuide.exact(model, factor), data=observations(model, 5), n=4000)
    assert result.attrs["method"] == "exact"
    for level in (0.5, 0.8, 0.9, 0.95):
        expected = 2 * stats.norm.cdf(stats.norm.ppf((1 + level) / 2) * factor) - 1
        np.testing.assert_allclose(result["coverage"].sel(level=level), expected, atol=0.03)


def test_uniform_for_the_exact_guide_and_not_for_a_narrow_one():
    model = dense()
    x = observations(model, 5)
    exact = calibrate(model, GaussianGuide.exact(model), data=x)
    assert exact["uniform_p"].min() > 0.01
    assert coverage_reading(exact).startswith("the width of q is right")
    narrow = calibrate(model, GaussianGuide.exact(model, 0.7), data=x)
    assert narrow["uniform_p"].max() < 1e-4
    assert coverage_reading(narrow).startswith("q is too narrow: its 90% intervals cover 7")
    wide = calibrate(model, GaussianGuide.exact(model, 1.5), data=x)
    assert coverage_reading(wide).startswith("q is too wide")


def test_mean_field_on_a_correlated_posterior_is_too_narrow_by_a_known_amount():
    model = dense()
    result = calibrate(model, GaussianGuide.mean_field(model), data=observations(model, 5), n=4000)
    ratio = (model.precision.diagonal() * model.covariance.diagonal()) ** -0.5
    np.testing.assert_allclose(
        result["coverage"].sel(level=0.9), 2 * stats.norm.cdf(1.645 * ratio) - 1, atol=0.02
    )


def two_sites(factor):
    """z ~ N(0, 1), w | z ~ N(z, 1), x | w ~ N(w, 1): w | x ~ N(2x/3, 2/3) and z | w ~ N(w/2, 1/2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(x * 2 / 3, factor * (2 / 3) ** 0.5))
            pyro.sample("z", dist.Normal(w / 2, 0.5**0.5))

    return model, guide


def test_sites_that_depend_on_each_other_are_ranked():
    """The conditional of z is not its marginal."""
    result = calibrate(*two_sites(1.0), data=torch.zeros(3), n=1500, draws=200, chunk=50_000)
    assert result.attrs["method"] == "ranks"
    assert list(result["latent"].values) == ["z", "w"]
    assert result["uniform_p"].min() > 0.01
    narrow = calibrate(*two_sites(0.5), data=torch.zeros(3), n=1500, draws=200)
    assert narrow["uniform_p"].sel(latent="w") < 1e-4


def test_ranks_agree_with_exact_transforms():
    model = diagonal()
    guide = GaussianGuide.exact(model, 0.6)

    def ranked(x):
        with pyro.plate("data", len(x)):
            loc = (x @ guide.gain).detach()
            flow = dist.transforms.AffineTransform(loc, 0.6 * model.covariance.diagonal().sqrt(), event_dim=1)
            pyro.sample(
                "z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow])
            )

    result = calibrate(model, ranked, data=observations(model, 2), n=1500, draws=300)
    assert result.attrs["method"] == "ranks"
    expected = 2 * stats.norm.cdf(1.645 * 0.6) - 1
    np.testing.assert_allclose(result["coverage"].sel(level=0.9), expected, atol=0.035)


def test_constrained_support():
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.LogNormal(rate.log(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(x.log() / 2, 0.5**0.5))

    result = calibrate(model, guide, data=torch.ones(3))
    assert result.attrs["method"] == "exact"
    assert result["uniform_p"].item() > 0.01


def test_conditions_stay_and_data_are_replaced():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        assert set(y.unique().tolist()) <= {5.0, -5.0}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))

    result = calibrate(model, guide, data=(torch.zeros(2), torch.tensor([5.0, -5.0])))
    assert result["uniform_p"].item() > 0.01


def test_one_seed_gives_one_result():
    model = diagonal()
    guide, x = GaussianGuide.exact(model), observations(model, 2)
    first, again, other = (calibrate(model, guide, data=x, n=50, seed=s)["pit"].values for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


def test_a_model_that_samples_needs_no_data():
    model = PPCA(torch.eye(3, 2), torch.zeros(3), 0.5)
    guide = AmortizedNormal(model, torch.nn.Linear(3, 4))
    guide(torch.zeros(2, 3))
    before = torch.get_rng_state()
    result = calibrate(model, guide, 200)
    assert torch.equal(torch.get_rng_state(), before)
    with_data = calibrate(model, guide, 200, data=torch.ones(2, 3))
    np.testing.assert_array_equal(result["pit"], with_data["pit"])


def test_arviz_draws_the_transforms():
    import arviz_base
    import arviz_plots
    from matplotlib import pyplot

    model = diagonal()
    pit = calibrate(model, GaussianGuide.exact(model), data=observations(model, 2), n=100)["pit"]
    tree = arviz_base.from_dict({"prior_sbc": {"z": pit.values[None]}}, dims={"z": ["latent"]})
    arviz_plots.plot_ecdf_pit(tree, backend="matplotlib")
    pyplot.close("all")


class TestErrors:
    def test_guide_of_these_observations_only(self):
        model, x = diagonal(), observations(diagonal(), 10)
        guide = AutoNormal(model)
        guide(x)
        with pytest.raises(ValueError, match="calibrate needs one that takes new data"):
            calibrate(model, guide, data=x, n=25)

    def test_data_that_cannot_be_replaced(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.exp())

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0))

        with pytest.raises(ValueError, match="observed site 'x' is none of the model's arguments"):
            calibrate(model, guide, data=torch.randn(4))

    def test_factors_cannot_be_simulated(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.factor("x", dist.Normal(z, 1.0).log_prob(x))

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 1.0))

        with pytest.raises(ValueError, match="the model has the factor 'x'"):
            calibrate(model, guide, data=torch.randn(4))

    def test_a_model_without_samples_needs_data(self):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        with pytest.raises(ValueError, match=r"no data to take the shapes from.*give data="):
            calibrate(model, model)

    def test_data_where_the_number_belongs(self):
        model = diagonal()
        with pytest.raises(TypeError, match=r"n is a Tensor; give the number of simulations, and data by"):
            calibrate(model, GaussianGuide.exact(model), observations(model, 2))

    def test_too_few(self):
        model = diagonal()
        with pytest.raises(ValueError, match="n is 1"):
            calibrate(model, GaussianGuide.exact(model), data=observations(model, 2), n=1)
