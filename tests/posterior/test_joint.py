"""Latents that all observations share, against the closed form of Bayesian linear regression."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from scipy import stats
from scipy.special import logsumexp

from pyro_vae.posterior import (
    active_units,
    diagnose,
    from_pyro_svi,
    inference_gaps,
    log_weights,
    posterior_error,
    reference_posterior,
    repair,
)

pytestmark = pytest.mark.arviz

N = 30


class Regression:
    """w ~ N(0, I), y ~ N(X w, I)."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
        noise = torch.randn(N, generator=generator, dtype=torch.float64)
        self.y = self.x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + noise
        self.covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + self.x.T @ self.x)
        self.mean = self.covariance @ self.x.T @ self.y
        marginal = torch.eye(N, dtype=torch.float64) + self.x @ self.x.T
        self.log_evidence = dist.MultivariateNormal(0 * self.y, marginal).log_prob(self.y).item()

    @property
    def data(self):
        return self.x, self.y

    def model(self, x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def subsampled(self, x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", N, subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(x[rows] @ w, 1.0), obs=y[rows])

    def guide(self, factor=1.0):
        def guide(x, y):
            pyro.sample("w", dist.MultivariateNormal(self.mean, factor**2 * self.covariance))

        return guide


@pytest.mark.parametrize("program", ["model", "subsampled"])
def test_the_exact_guide_has_no_gap(program):
    problem = Regression()
    report = diagnose(getattr(problem, program), problem.guide(), problem.data, draws=100)
    assert not report.sizes
    for estimate in ("elbo", "log_evidence"):
        assert float(report[estimate]) == pytest.approx(problem.log_evidence, abs=1e-6)
    assert float(report["khat"]) == -np.inf
    assert report.attrs["latent_dim"] == 2


def test_a_wide_guide_is_weighted():
    problem = Regression()
    weights = log_weights(problem.model, problem.guide(1.5), problem.data, draws=600)
    assert weights.dims == ("draw",)
    estimate = logsumexp(weights) - np.log(600)
    report = diagnose(problem.model, problem.guide(1.5), problem.data, draws=600)
    assert float(report["log_evidence"]) == pytest.approx(float(estimate))
    error = 4 * float(report["log_evidence_se"])
    assert error < 0.3
    assert estimate == pytest.approx(problem.log_evidence, abs=error)
    exact_kl = 2 * (0.5 * 1.5**2 - 0.5 - np.log(1.5))
    assert problem.log_evidence - float(report["elbo"]) == pytest.approx(exact_kl, abs=0.3)


def test_annealing_scales_are_left_out():
    problem = Regression()
    with_scale = pyro.poutine.scale(problem.model, scale=0.1)
    report = diagnose(with_scale, problem.guide(), problem.data, draws=30)
    assert float(report["elbo"]) == pytest.approx(problem.log_evidence, abs=1e-6)


def both(x):
    """m ~ N(0, 1), z_i ~ N(m, 1), x_i ~ N(z_i, 1): x ~ N(0, 2 I + 1 1ᵀ)."""
    m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_both(x):
    precision = 1 + len(x) / 2
    m = pyro.sample("m", dist.Normal(x.sum() / 2 / precision, precision**-0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + m) / 2, 0.5**0.5))


def test_shared_latents_and_those_of_each_observation_have_joint_weights():
    x = torch.randn(8, dtype=torch.float64)
    covariance = 2 * torch.eye(8, dtype=torch.float64) + 1
    truth = dist.MultivariateNormal(0 * x, covariance).log_prob(x).item()
    report = diagnose(both, exact_both, x, draws=50)
    assert float(report["log_evidence"]) == pytest.approx(truth, abs=1e-6)
    assert report.attrs["latent_dim"] == 9
    tree = from_pyro_svi(both, exact_both, x, draws=50)
    assert tree["posterior"]["m"].dims == ("chain", "draw")
    assert tree["posterior"]["z"].dims == ("chain", "draw", "observation")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "observation")


def test_tree_of_a_regression():
    problem = Regression()
    tree = from_pyro_svi(problem.model, problem.guide(), problem.data, draws=500)
    draws = tree["posterior"]["w"]
    assert draws.shape == (1, 500, 2)
    scale = problem.covariance.diagonal().sqrt()
    np.testing.assert_allclose(draws.mean(("chain", "draw")), problem.mean, atol=4 * scale.max() / 500**0.5)
    assert tree["observed_data"]["y"].dims == ("observation",)
    assert tree["posterior_predictive"]["y"].sizes["observation"] == N
    residual = tree["posterior_predictive"]["y"].std("draw").mean()
    assert 0.9 < float(residual) < 1.3  # never the data back
    np.testing.assert_allclose(tree["prior"]["w"].std("draw"), 1, atol=4 / 2 / 500**0.5 * 2)
    evidence = logsumexp(tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]) - np.log(500)
    assert evidence == pytest.approx(problem.log_evidence, abs=1e-6)
    with pytest.raises(ValueError, match="observations names some of the data, but all of them share"):
        from_pyro_svi(problem.model, problem.guide(), problem.data, observations=[0])


@pytest.mark.slow
def test_nuts_is_a_reference_for_them():
    problem = Regression()
    reference = reference_posterior(problem.model, problem.data, draws=500, warmup=200, chains=2)
    assert reference["posterior"]["w"].sizes == {"chain": 2, "draw": 500, "latent": 2}
    error = posterior_error(from_pyro_svi(problem.model, problem.guide(), problem.data), reference)
    assert error["mean_error"].dims == ("latent",)
    assert float(error["mean_error"].max()) < 0.25
    np.testing.assert_allclose(error["sd_ratio"], 1, atol=0.2)


@pytest.mark.parametrize("family", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_autoguides(family):
    problem = Regression()
    pyro.clear_param_store()
    guide = family(problem.model)
    guide(*problem.data)
    report = diagnose(problem.model, guide, problem.data, draws=30)
    assert not report.sizes
    assert float(report["elbo"]) < problem.log_evidence


def test_what_needs_single_observations_says_so():
    problem = Regression()
    with pytest.raises(ValueError, match=r"site 'w' is not in a plate.*ask log_weights"):
        active_units(problem.model, problem.guide(), problem.data)


class TestRepair:
    def test_the_posterior_of_a_regression(self):
        problem = Regression()
        tree = repair(problem.model, problem.guide(0.5), problem.data, steps=("resample", "local"))
        report = tree["repair"].to_dataset()
        assert "observation" not in report.dims
        assert report["believable"].item()
        assert report["khat"].sel(tried="guide") > 0.5
        error = abs(report["log_evidence"].item() - problem.log_evidence)
        assert error < 5 * report["log_evidence_se"].item()
        draws, sd = tree["posterior"]["w"], problem.covariance.diagonal().sqrt().numpy()
        assert draws.dims == ("chain", "draw", "latent")
        off = (draws.mean(("chain", "draw")).values - problem.mean.numpy()) / sd
        assert abs(off).max() < 5 / 500**0.5  # half of the draws are independent
        np.testing.assert_allclose(draws.std(("chain", "draw")) / sd, 1.0, atol=5 / 1000**0.5)

    def test_latents_of_all_beside_those_of_each(self):
        x = 1 + torch.randn(8)

        def guide(x):
            pyro.sample("m", dist.Normal(x.new_zeros(()), 0.3))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.3))

        tree = repair(both, guide, x, steps=("resample", "local"))
        assert tree["posterior"]["m"].dims == ("chain", "draw")
        assert tree["posterior"]["z"].dims == ("chain", "draw", "observation")
        truth = dist.MultivariateNormal(torch.zeros(8), 2 * torch.eye(8) + 1).log_prob(x).item()
        assert tree["repair"]["believable"].item()
        assert tree["repair"]["log_evidence"].item() == pytest.approx(truth, abs=0.1)
        # joint draws: m | x ~ N(Σx / (2 + 8), 2 / (2 + 8)), and z and m correlate
        m, z = tree["posterior"]["m"].values[0], tree["posterior"]["z"].values[0]
        assert m.mean() == pytest.approx(x.sum().item() / 10, abs=5 * (0.2 / 500) ** 0.5)
        exact = (3.2 / 7.2) ** 0.5  # Σz = 4 m + noise of variance 4; 0 if drawn apart
        assert np.corrcoef(m, z.sum(1))[0, 1] == pytest.approx(exact, abs=0.12)

    def test_a_support_and_its_jacobian(self):
        """σ² of Normals, Gamma on the precision: the evidence is a Student-t's."""
        x = torch.tensor([0.5, -1.0, 2.0, 0.3])

        def model(x):
            tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0.0, tau**-0.5), obs=x)

        def guide(x):
            pyro.sample("tau", dist.LogNormal(torch.zeros(()), 0.4))

        tree = repair(model, guide, x, steps=("resample", "local"))
        truth = stats.multivariate_t(np.zeros(4), np.eye(4), df=4).logpdf(x.numpy())
        assert tree["repair"]["log_evidence"].item() == pytest.approx(truth, abs=0.05)
        assert (tree["posterior"]["tau"] > 0).all()

    def test_too_many_numbers(self):
        def model(x):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(m, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        with pytest.raises(ValueError, match="together are 1201 numbers, because they share some"):
            repair(model, exact_both, torch.zeros(1200), draws=30)


class TestGaps:
    @pytest.mark.parametrize("full", [True, False])
    def test_the_family_of_a_regression(self, full):
        problem = Regression()
        precision = torch.linalg.inv(problem.covariance)
        best = torch.logdet(precision) * -0.5 + precision.diagonal().log().sum() / 2

        def diagonal(x, y):
            scale = precision.diagonal() ** -0.5 / 2
            pyro.sample("w", dist.Normal(problem.mean, scale).to_event(1))

        gaps = inference_gaps(problem.model, problem.guide(0.5) if full else diagonal, problem.data)
        assert not gaps.sizes
        expected = 0.0 if full else best.item()
        assert float(gaps["approximation_gap"]) == pytest.approx(expected, abs=0.05)
        lost = 2 * (0.125 - 0.5 + np.log(2))
        assert float(gaps["amortization_gap"]) == pytest.approx(lost, abs=0.15)

    @pytest.mark.parametrize("family", [AutoDiagonalNormal, AutoMultivariateNormal])
    def test_autoguides(self, family):
        problem = Regression()
        pyro.clear_param_store()
        guide = family(problem.model)
        guide(*problem.data)
        gaps = inference_gaps(problem.model, guide, problem.data)
        assert bool(gaps["converged"])
        assert float(gaps["elbo_local"]) > float(gaps["elbo"])
        assert float(gaps["elbo_local"]) < problem.log_evidence + 0.05

    def test_independent_normals_of_several_latents(self):
        """The best of them for N(m) N(z | m) N(x | z) is known from the precision of everything."""
        x = torch.tensor([1.0, -0.5, 2.0])
        pyro.clear_param_store()
        guide = AutoNormal(both)
        guide(x)
        gaps = inference_gaps(both, guide, x)
        precision = torch.eye(4) * 2.0
        precision[0, 0], precision[0, 1:], precision[1:, 0] = 4.0, -1.0, -1.0
        lost = (precision.diagonal().log().sum() - torch.logdet(precision)).item() / 2
        assert float(gaps["approximation_gap"]) == pytest.approx(lost, abs=0.05)

    def test_a_family_that_is_not_known(self):
        problem = Regression()

        def guide(x, y):
            pyro.sample("w", dist.StudentT(5.0, problem.mean, 0.2).to_event(1))

        with pytest.raises(ValueError, match="neither from independent Normals nor from one Normal"):
            inference_gaps(problem.model, guide, problem.data)
