"""Diagnostics against closed forms of Gaussian posteriors, and ways in which they could be silently wrong."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from sklearn.datasets import load_digits

from pyro_vae.models import PPCA
from pyro_vae.posterior import diagnose, log_weights
from pyro_vae.posterior.belief import believed
from pyro_vae.posterior.importance import _summary
from pyro_vae.posterior.pareto import khat_threshold, pareto_khat
from tests.posterior.gaussians import (
    GaussianGuide,
    LinearGaussian,
    dense,
    diagonal,
    gaussian_kl,
    mean_field_gap,
    observations,
)

pytestmark = pytest.mark.arviz


def test_an_exact_guide_has_no_gap_and_says_so_without_an_exception():
    model = dense()
    x = observations(model, 20)
    report = diagnose(model, GaussianGuide.exact(model), x)
    evidence = model.log_evidence(x).numpy()
    for estimate in ("elbo", "log_evidence"):
        np.testing.assert_allclose(report[estimate], evidence, atol=1e-9)
    np.testing.assert_allclose(report["log_evidence_se"], 0, atol=1e-6)
    np.testing.assert_allclose(report["ess"], 1000)
    assert (report["khat"] == -np.inf).all()


def test_mean_field_gap():
    model = dense()
    x = observations(model, 40)
    report = diagnose(model, GaussianGuide.mean_field(model), x, draws=2000)
    gaps = report["log_evidence"] - report["elbo"]
    error = float(gaps.std()) / 40**0.5  # the gap is one number for all observations; the rest is noise
    assert float(gaps.mean()) == pytest.approx(mean_field_gap(model), abs=5 * error)
    assert error < 0.02
    error = (report["log_evidence"] - model.log_evidence(x).numpy()) / report["log_evidence_se"]
    assert abs(error).max() < 5


def test_ppca_on_real_data():
    """Maximum likelihood on the digits, and the best diagonal guide: all in closed form."""
    x = torch.tensor(load_digits().data)
    model = PPCA.fit_exact(x, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    model = model.rotated(rotation)

    def guide(x):
        posterior = model.posterior(x)
        scale = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1) ** -0.5
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(posterior.loc, scale).to_event(1))

    report = diagnose(model, guide, x[:200], draws=2000)
    evidence = model.log_evidence(x[:200]).detach().numpy()
    np.testing.assert_allclose(report["log_evidence"].mean(), evidence.mean(), atol=0.02)
    gap = float((report["log_evidence"] - report["elbo"]).mean())
    assert gap == pytest.approx(float(model.mean_field_gap()), abs=0.02)


def test_kl_and_reconstruction_add_up_and_equal_their_closed_forms():
    model = dense()
    x = observations(model, 30)
    guide = GaussianGuide.exact(model, 0.8)
    report = diagnose(model, guide, x, draws=4000)
    np.testing.assert_allclose(report["elbo"], report["reconstruction"] - report["kl"])
    expected = gaussian_kl(model, x, 0.64 * model.covariance).numpy()
    np.testing.assert_allclose(report["kl"].mean(), expected.mean(), atol=0.02)
    np.testing.assert_allclose(report["kl"], expected, atol=0.25)


@pytest.mark.parametrize("factor", [0.5, 0.8])
def test_khat_approaches_one_minus_the_smallest_variance_ratio(factor):
    model = diagonal(latent_dim=1)
    report = diagnose(model, GaussianGuide.exact(model, factor), observations(model, 8), draws=40_000)
    assert float(report["khat"].mean()) == pytest.approx(1 - factor**2, abs=0.1)


@pytest.mark.parametrize("factor", [0.9, 1.2])
def test_effective_sample_size(factor):
    model = dense()
    ratio = factor**2
    expected = (np.sqrt(2 * ratio - 1) / ratio) ** 3
    report = diagnose(model, GaussianGuide.exact(model, factor), observations(model, 30), draws=4000)
    assert float(report["ess"].mean()) / 4000 == pytest.approx(expected, abs=0.02)


def test_sign_of_psis():
    """A narrow guide looks perfect if log weights are passed where psislw wants log likelihoods."""
    model = diagonal(latent_dim=1)
    x = observations(model, 10)
    narrow = diagnose(model, GaussianGuide.exact(model, 0.5), x)["khat"]
    wide = diagnose(model, GaussianGuide.exact(model, 2.0), x)["khat"]
    assert float(narrow.mean()) > 0.5 > 0 > float(wide.mean())


def test_evidence_is_the_raw_mean_of_the_weights_and_not_a_smoothed_one():
    model = diagonal(latent_dim=1)
    guide = GaussianGuide.exact(model, 0.5)
    x = observations(model, 5)
    weights = log_weights(model, guide, x, draws=500)
    report = diagnose(model, guide, x, draws=500)
    np.testing.assert_allclose(report["log_evidence"], logsumexp(weights, axis=1) - np.log(500))


@pytest.mark.parametrize(
    ("row", "khat"),
    [
        (np.zeros(100), -np.inf),
        (np.full(100, np.nan), np.inf),
        (np.r_[np.nan, np.random.default_rng(0).normal(size=99)], np.inf),
        (np.r_[np.inf, np.zeros(99)], np.inf),
        (np.full(100, -np.inf), np.inf),
        (np.r_[np.full(99, -np.inf), 0.0], np.inf),
    ],
    ids=["equal", "nan", "one nan", "infinite", "zero", "one not zero"],
)
def test_khat_where_no_tail_can_be_fitted(row, khat):
    """NaN would pass as good, not being above the threshold; and one bad row must not spoil the others."""
    healthy = np.random.default_rng(1).normal(size=100)
    both = pareto_khat(np.stack([row, healthy]))
    assert both[0] == khat
    assert np.isfinite(both[1])
    assert both[1] == pareto_khat(healthy[None])[0]


NOISE = np.random.default_rng(2).normal(size=1000)


@pytest.mark.parametrize(
    ("row", "khat"),
    [
        (np.r_[np.full(999, -7.0), 0.0], np.inf),
        (np.r_[np.full(998, -7.0), 0.0, 0.1], np.inf),
        (np.r_[NOISE[:999] - 1000, 0.0], np.inf),
        (np.r_[NOISE[:999] - 8, 0.0], np.inf),
        (np.r_[np.full(996, -9.0), np.zeros(4)], np.inf),
        (np.r_[np.full(800, -3.0), np.zeros(200)], -np.inf),
        (np.r_[np.full(950, -3.0), np.zeros(50)], -np.inf),
        (-np.abs(NOISE) * 0.01, -np.inf),
    ],
    ids=[
        "right state drawn once",
        "two of a tail",
        "all but one underflow",
        "one heavy weight",
        "right state drawn four times",
        "right state drawn often",
        "right state drawn fifty times",
        "tail within two hundredths",
    ],
)
def test_khat_of_ties_and_of_one_heavy_weight(row, khat):
    """A Pareto fit answers 0.05 to the first five, which is its prior alone, and 3 to the last."""
    assert pareto_khat(row[None])[0] == khat


def test_a_discrete_latent_whose_right_state_is_hardly_drawn_is_not_believed():
    """Evidence off by seven nats where the state is not drawn; where it is, one draw carries the sum."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(10 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.001)))

    x = torch.full((60,), 10.0)
    report = diagnose(model, guide, x)
    truth = torch.distributions.Normal(10.0, 1.0).log_prob(x[0]).item() + np.log(0.5)
    drawn = report["log_evidence"].values > truth - 5
    assert 10 < drawn.sum() < 60  # 38 of 60 in expectation
    assert not (believed(report) & drawn).any()
    assert np.isinf(report["log_evidence_se"].values[drawn]).all()


class TestBelieved:
    def test_khat_alone_is_not_enough(self):
        values = {"khat": [0.1, 0.1, 0.9, np.nan, -np.inf], "ess": [500.0, 3.0, 500.0, 500.0, 1000.0]}
        assert believed(values | {"draws": 1000}).tolist() == [True, False, False, False, True]
        assert believed({"khat": [0.6]}).tolist() == [True]  # nothing else is known
        assert believed({"log_evidence": [0.0]}) is None

    def test_what_repair_judged_counts(self):
        assert believed({"believable": [True, False], "khat": [0.9, 0.1]}).tolist() == [True, False]


@pytest.mark.parametrize(("dimension", "width"), [(1, 0.9), (4, 0.9), (8, 1.3), (1, 2.0), (16, 1.1)])
@pytest.mark.parametrize("draws", [300, 1000])
def test_told_intervals_hold_the_truth(dimension, width, draws):
    """The whole table: ``benchmarks/evidence_coverage.py``. Of 300 runs the share varies by 1.3 points."""
    weights = gaussian_weights(dimension, width, draws, runs=300)
    found = _summary(weights, np.zeros_like(weights))
    told = np.isfinite(found["log_evidence_se"])
    assert told.mean() > (0.4 if width > 1 else 0.04)
    covered = (abs(found["log_evidence"]) <= 1.96 * found["log_evidence_se"])[told].mean()
    four = 4 * np.sqrt(0.95 * 0.05 / told.sum())
    assert 0.9 - four < covered < 0.97 + four


@pytest.mark.parametrize(("dimension", "width", "draws"), [(1, 0.5, 100), (1, 0.5, 1000), (8, 0.6, 1000)])
def test_no_standard_error_for_guides_that_are_far_too_narrow(dimension, width, draws):
    """Their k̂ passes in up to half of the runs, in which the tail was not drawn: 52% and 18% would cover."""
    weights = gaussian_weights(dimension, width, draws, runs=200)
    found = _summary(weights, np.zeros_like(weights))
    assert (found["khat"] <= khat_threshold(draws)).mean() > 0.1
    assert np.isfinite(found["log_evidence_se"]).mean() < 0.05


def gaussian_weights(dimension, width, draws, runs):
    """Log weights of a guide with ``width`` times the standard deviations of a standard Normal."""
    squares = np.random.default_rng([dimension, draws]).chisquare(dimension, (runs, draws))
    return dimension * np.log(width) + (1 - width**2) / 2 * squares


def test_tied_weights_are_never_nan():
    """Float32 densities tie; newer ArviZ then fits NaN."""
    tied = np.round(np.random.default_rng(0).normal(size=(20, 1000)), 0)
    assert not np.isnan(pareto_khat(tied)).any()


def test_threshold():
    assert khat_threshold(100) == 0.5
    assert khat_threshold(2154) == pytest.approx(0.7, abs=1e-4)
    assert khat_threshold(10**6) == 0.7


def test_attributes_say_what_khat_depends_on():
    model = dense()
    report = diagnose(model, GaussianGuide.exact(model), observations(model, 3), draws=100, seed=7)
    assert report.attrs == {"draws": 100, "seed": 7, "latent_dim": 3, "khat_threshold": 0.5}


def test_importance_bounds_rise_to_the_evidence():
    model = dense()
    x = observations(model, 100)
    weights = log_weights(model, GaussianGuide.exact(model, 0.8), x, draws=2000)

    def bound(particles):
        groups = weights.values.reshape(100, -1, particles)
        return (logsumexp(groups, axis=2) - np.log(particles)).mean()

    bounds = [bound(k) for k in (1, 5, 50, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(float(model.log_evidence(x).mean()), abs=0.02)


class TestCommonRandomNumbers:
    def test_the_same_seed_gives_two_guides_the_same_noise(self):
        """Means equal and standard deviations s: the log weight's noise is the same draw for draw."""
        model = diagonal(latent_dim=1)
        x = observations(model, 4)
        a, b = (log_weights(model, GaussianGuide.exact(model, s), x, draws=200) for s in (0.7, 0.8))
        np.testing.assert_allclose([np.corrcoef(u, v)[0, 1] for u, v in zip(a, b, strict=True)], 1)

    def test_seeds_differ_and_repeat(self):
        model = diagonal()
        guide, x = GaussianGuide.exact(model, 0.7), observations(model, 4)
        first, again, other = (log_weights(model, guide, x, 50, seed=seed).values for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.isclose(first, other).mean() < 0.1  # a few of 200 may be near by chance

    def test_observations_do_not_share_noise(self):
        model = diagonal()
        x = observations(model, 1).expand(6, -1)
        weights = log_weights(model, GaussianGuide.exact(model, 0.7), x, 50, chunk=50)
        assert len(np.unique(weights[:, 0])) == 6


def test_chunk_bounds_the_rows_that_go_through_the_networks():
    seen = []

    class Watched(LinearGaussian):
        def forward(self, x):
            z = super().forward(x)
            seen.append(z.numel() // z.shape[-1])
            return z

    model = Watched(torch.eye(2), 0.5)
    guide = GaussianGuide.exact(model, 0.7)
    x = observations(model, 25)
    whole = diagnose(model, guide, x, draws=300)
    seen.clear()
    pieces = diagnose(model, guide, x, draws=300, chunk=1000)
    tiny = diagnose(model, guide, x, draws=300, chunk=70)
    assert max(seen) <= 1000
    for other in (pieces, tiny):
        error = np.hypot(whole["log_evidence_se"], other["log_evidence_se"])
        assert (abs(whole["log_evidence"] - other["log_evidence"]) < 5 * error).all()


@pytest.mark.parametrize(("argument", "value"), [("draws", 0), ("draws", 29), ("chunk", 0)])
def test_numbers_that_make_no_sense(argument, value):
    model = diagonal()
    with pytest.raises(ValueError, match=f"{argument} is {value}"):
        diagnose(model, GaussianGuide.exact(model), observations(model, 2), **{argument: value})


def test_nan_data_are_named():
    model = diagonal()
    x = observations(model, 2)
    x[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"data is nan at index \(1, 0\)"):
        log_weights(model, GaussianGuide.exact(model), x)


def test_impossible_draws_count_as_weight_zero():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(z, z + 1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 0.5, 1.0))

    x = torch.tensor([0.2, 1.0])
    report = diagnose(model, guide, x, draws=5000)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = (normal.cdf(x) - normal.cdf(x - 1)).log()
    assert (report["elbo"] == -np.inf).all()
    np.testing.assert_allclose(report["log_evidence"], expected, atol=0.1)
    assert not np.isnan(report["log_evidence_se"]).any()


def test_a_factor_of_the_guide_is_not_log_q():
    """Losses of a classifier are written so; they say nothing about how near q is to the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.factor("loss", 5 + 0 * z, has_rsample=True)

    report = diagnose(model, guide, torch.zeros(3))
    exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.0)).item()
    np.testing.assert_allclose(report["elbo"], exact, atol=1e-5)
    np.testing.assert_allclose(report["log_evidence"], exact, atol=1e-5)
