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
from pyro_vae.posterior import calibrate, coverage_reading, sandwich_reading
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


def test_the_guide_looks_at_the_simulated_data_once():
    """A refined guide takes gradient steps to know its parameters."""
    rows = []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    model = PPCA(torch.eye(3, 2), torch.zeros(3), 0.5)
    guide = AmortizedNormal(model, Watched(3, 4))
    guide(torch.zeros(2, 3))
    calibrate(model, guide, 50, data=torch.zeros(4, 3), joint_draws=100, chunk=1000)
    assert rows.count(50) == 1
    assert max(rows) == 50


@pytest.mark.parametrize(("rows", "n"), [(2, 20), (5, 20), (20, 20), (40, 20)])
def test_a_guide_for_its_own_observations_is_refused(rows, n):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model)
    guide(torch.zeros(rows))
    with pytest.raises(ValueError, match="calibrate needs one that takes new data"):
        calibrate(model, guide, n, data=torch.zeros(rows))


def test_arviz_draws_the_transforms():
    import arviz_base
    import arviz_plots
    from matplotlib import pyplot

    model = diagonal()
    pit = calibrate(model, GaussianGuide.exact(model), data=observations(model, 2), n=100)["pit"]
    tree = arviz_base.from_dict({"prior_sbc": {"z": pit.values[None]}}, dims={"z": ["latent"]})
    arviz_plots.plot_ecdf_pit(tree, backend="matplotlib")
    pyplot.close("all")


def by_latent(scales, shift=0.0):
    """z ~ N(0, I), x ~ N(z, I), a guide with these multiples of the posterior's standard deviations."""
    factors = torch.tensor(scales)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(scales)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift * 0.5**0.5, 0.5**0.5 * factors).to_event(1))

    return model, guide


def reading_of(scales, shift=0.0, n=1000, seed=0):
    pair, data = by_latent(scales, shift), torch.zeros(2, len(scales))
    return coverage_reading(calibrate(*pair, n, data=data, seed=seed, joint_draws=50))


class TestReading:
    """Said where it must be, and not where it must not."""

    @pytest.mark.parametrize(
        ("scales", "shift", "said"),
        [
            ([0.5] + [1.3] * 7, 0.0, "q is too narrow in z[0] ("),
            ([0.6, 3.0], 0.0, "too wide in z[1] (100%)"),
            ([1.3], 0.8, "beside the posterior"),
            ([0.8] + [1.0] * 7, 0.0, "too narrow in z[0] (8"),
            ([0.7, 0.7], 0.0, "q is too narrow: its 90% intervals cover 7"),
            ([1.6, 1.6], 0.0, "q is too wide: its 90% intervals cover 99%"),
        ],
    )
    def test_faults_of_single_latents_do_not_cancel(self, scales, shift, said):
        found = reading_of(scales, shift)
        assert said in found
        assert "is right" not in found

    @pytest.mark.parametrize("latents", [1, 8])
    def test_an_exact_guide_is_right(self, latents):
        """Of 20 calibrations, each of which is called wrong in 1%: five are one in a million."""
        alarms = [
            not reading_of([1.0] * latents, n=200, seed=s).startswith("the width of q is right: ")
            for s in range(20)
        ]
        assert sum(alarms) < 5

    def test_uniform_p_counts_the_latents(self):
        """Any of eight below 0.05 in 5% of the calibrations; without Bonferroni in 34%."""
        pair, data = by_latent([1.0] * 8), torch.zeros(2, 8)
        found = [
            calibrate(*pair, 200, data=data, seed=s, joint_draws=2)["uniform_p"].min() for s in range(60)
        ]
        assert sum(float(p) < 0.05 for p in found) <= 10

    def test_seeds_are_judged_together(self):
        import xarray as xr

        one = calibrate(*by_latent([0.9]), 1000, data=torch.zeros(2, 1), joint_draws=2)
        several = xr.concat([one] * 3, "seed")
        assert "too narrow" in coverage_reading(several)


class TestJoint:
    """A guide whose marginals are right and that is wrong."""

    def test_the_prior_is_calibrated_and_says_nothing(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def prior(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

        found = calibrate(model, prior, data=torch.zeros(2))
        assert found["uniform_p"].item() > 0.01
        assert found["joint_p"].item() < 1e-4
        assert "not jointly" in coverage_reading(found)

    def test_right_marginals_without_their_correlation(self):
        model = dense()
        guide = GaussianGuide(model, scale=model.covariance.diagonal().sqrt())
        found = calibrate(model, guide, data=observations(model, 5))
        assert found["uniform_p"].min() > 0.01
        assert found["joint_p"].item() < 1e-3
        exact = calibrate(model, GaussianGuide.exact(model), data=observations(model, 5))
        assert exact["joint_p"].item() > 0.01


class TestSandwich:
    def test_bounds_hold_the_evidence_and_meet_for_the_exact_guide(self):
        model = dense()
        found = calibrate(model, GaussianGuide.exact(model), data=observations(model, 5))
        np.testing.assert_allclose(found["evidence_lower"], found["evidence_upper"], atol=1e-8)
        assert found["sandwich"].item() < 1e-8
        assert "known to within 0.00" in sandwich_reading(found)

    def test_a_narrow_guide_does_not_bound_it(self):
        model = dense()
        x = observations(model, 5)
        found, exact = (calibrate(model, GaussianGuide.exact(model, f), data=x) for f in (0.4, 1.0))
        truth = float(exact["evidence_lower"].mean())  # of the same simulated data
        assert float(found["evidence_lower"].mean()) < truth < float(found["evidence_upper"].mean())
        assert found["sandwich"].item() > 0.5
        assert "do not bound it" in sandwich_reading(found)
        more = calibrate(model, GaussianGuide.exact(model, 0.4), data=x, joint_draws=2000)
        assert more["sandwich"].item() < found["sandwich"].item()

    def test_guides_are_asked_about_the_same_data(self):
        model = dense()
        x = observations(model, 5)
        guides = GaussianGuide.exact(model), GaussianGuide(model, scale=torch.ones(3))
        lower = [calibrate(model, g, data=x, joint_draws=3000, n=20)["evidence_lower"] for g in guides]
        np.testing.assert_allclose(lower[0], lower[1], atol=0.5)  # as the narrower of these is known

    def test_auxiliary_draws_leave_the_upper_bound_open(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(x / 2, 0.5**0.5), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(u))

        found = calibrate(model, guide, data=torch.zeros(2), n=50)
        assert np.isnan(found["sandwich"])
        assert "no upper bound" in sandwich_reading(found)


def test_discrete_latents_are_ranked_with_ties_broken_at_random():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x):
        one, zero = (dist.Normal(at, 1.0).log_prob(x) for at in (2.0, 0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=one - zero + np.log(0.4 / 0.6)))

    found = calibrate(model, guide, data=torch.zeros(2), draws=200)
    assert found.attrs["method"] == "ranks"
    assert coverage_reading(found).startswith("the width of q is right")
    assert found["uniform_p"].item() > 0.01

    def sure(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli((x > 1).double() * 0.98 + 0.01))

    assert not coverage_reading(calibrate(model, sure, data=torch.zeros(2))).startswith("the width of q is r")


def test_a_plate_inside_the_data_plate():
    """Latents of an observation lie in front of it there: a transpose, and no reshape."""

    def model(x):
        with pyro.plate("data", len(x)), pyro.plate("latent", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor([[0.0], [5.0], [-5.0]]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("latent", 3, dim=-2):
            loc = (x.T + torch.tensor([[0.0], [5.0], [-5.0]])) / 2
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    found = calibrate(model, guide, data=torch.zeros(4, 3))
    assert found.attrs["method"] == "exact"
    assert list(found["latent"].values) == ["z[0]", "z[1]", "z[2]"]
    np.testing.assert_allclose(found["coverage"].sel(level=0.9), 0.9, atol=0.04)
    assert found["uniform_p"].min() > 0.01


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
