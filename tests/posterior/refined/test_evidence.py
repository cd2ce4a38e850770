"""Refined evidence is the model's, whatever the guide."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae import data
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA, VAE, MLPDecoder, MLPEncoder, likelihoods
from tests.posterior.annealed import annealed_evidence

COLUMNS = {"elbo", "log_evidence", "log_evidence_se", "khat", "ess", "kl", "reconstruction"}


def ppca(n=6):
    generator = torch.Generator().manual_seed(3)
    model = PPCA(torch.randn(5, 3, generator=generator), torch.zeros(5), 0.5)
    return model, torch.randn(n, 5, generator=generator)


def bad_guide(model):
    """Far off and far too narrow."""
    return AmortizedNormal(model, torch.nn.Linear(5, 8), init_scale=0.01)


def test_a_bad_guide_tells_the_exact_evidence():
    model, x = ppca()
    report = pyro_vae.diagnose(model, bad_guide(model), x, draws=1000, refined=True)
    assert set(report) == COLUMNS | {"rounds", "elbo_guide", "converged"}
    exact = model.log_evidence(x)
    error = torch.as_tensor(report["log_evidence"].values) - exact
    # of weights of a Student-t for a Normal: about 0.02 with 1000 draws
    assert (abs(error) < 0.1).all()
    assert (abs(error) < 5 * torch.as_tensor(report["log_evidence_se"].values)).all()
    assert (report["khat"] <= 0.5).all()
    assert (report["rounds"] == 1).all()
    assert report["converged"].all()
    assert report.attrs["latent_dim"] == 3
    assert report.attrs["refined"] == 1
    torch.testing.assert_close(torch.as_tensor(report["elbo"].values), exact, rtol=0, atol=1e-3)


def test_elbo_kl_and_reconstruction_are_those_of_the_refined_normals():
    model, x = ppca()
    report = pyro_vae.diagnose(model, bad_guide(model), x, draws=20_000, refined=True)
    q = model.posterior(x)
    kl = torch.distributions.kl_divergence(
        q, dist.MultivariateNormal(torch.zeros(3), torch.eye(3)).expand([len(x)])
    )
    spread = q.log_prob(q.sample((2000,))).std() + kl.std()
    np.testing.assert_allclose(report["kl"], kl, atol=float(6 * spread / math.sqrt(20_000)))
    np.testing.assert_allclose(report["reconstruction"] - report["kl"], report["elbo"], atol=1e-9)


def test_the_guide_does_not_matter_and_neither_do_groups_and_chunks(monkeypatch):
    torch.manual_seed(2)
    model = VAE(MLPDecoder(3, [8], 6), 3, "bernoulli")
    x = (torch.rand(9, 6) < 0.5).double()
    reports = [
        pyro_vae.diagnose(model, AmortizedNormal(model, MLPEncoder(6, [8]), init_scale=s), x, refined=True)
        for s in (0.2, 1.0)
    ]
    assert abs(reports[0]["elbo_guide"] - reports[1]["elbo_guide"]).max() > 0.5
    difference = abs(reports[0]["log_evidence"] - reports[1]["log_evidence"])
    assert (difference < 6 * (reports[0]["log_evidence_se"] + reports[1]["log_evidence_se"])).all()
    guide = AmortizedNormal(model, MLPEncoder(6, [8]))
    whole = pyro_vae.diagnose(model, guide, x, draws=100, refined=True)
    monkeypatch.setattr("pyro_vae.posterior.refined.evidence.GROUP", 250)
    parts = pyro_vae.diagnose(model, guide, x, draws=100, refined=True, chunk=64)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


def banana(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 1] - z[..., 0] ** 2, 0.3), obs=x)


def test_rounds_go_on_for_those_that_need_them():
    x = torch.tensor([-2.0, 0.0, 2.0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    report = pyro_vae.diagnose(banana, guide, x, draws=500, refined=True)
    assert (report["rounds"] > 1).any()
    grid = torch.linspace(-6.0, 6.0, 2001)
    # z₁ is Normal given z₀, so that x is, too
    inner = dist.Normal(-grid.square(), math.hypot(3.0, 0.3)).log_prob(x[:, None])
    exact = (inner + dist.Normal(0.0, 1.0).log_prob(grid)).logsumexp(-1) + math.log(grid[1] - grid[0])
    error = abs(torch.as_tensor(report["log_evidence"].values) - exact)
    assert (error < 0.3).all(), error  # of 36 such, the largest is 0.16


def test_the_same_seed_gives_the_same_numbers_and_data_may_come_in_batches():
    model, x = ppca()
    guide = bad_guide(model)
    guide(x)
    one, again = (pyro_vae.diagnose(model, guide, x, draws=100, refined=True) for _ in range(2))
    assert one.identical(again)
    other = pyro_vae.diagnose(model, guide, x, draws=100, refined=True, seed=1)
    assert not np.array_equal(other["log_evidence"], one["log_evidence"])
    loader = DataLoader(TensorDataset(x), batch_size=4)
    batches = pyro_vae.diagnose(model, guide, loader, draws=2000, refined=True)
    exact = model.log_evidence(x).numpy()
    np.testing.assert_allclose(batches["log_evidence"], exact, atol=0.1)


def test_an_impossible_observation_ends_nothing():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)
            pyro.factor("never", torch.where(x > 5, -torch.inf, 0.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    report = pyro_vae.diagnose(model, guide, torch.tensor([1.0, 9.0]), draws=200, refined=True)
    exact = float(dist.Normal(0.0, math.sqrt(3)).log_prob(torch.tensor(1.0)))
    assert report["log_evidence"][0] == pytest.approx(exact, abs=0.2)
    assert report["log_evidence"][1] == -np.inf
    assert report["khat"][1] == np.inf
    assert report["converged"].values.tolist() == [True, False]


@pytest.mark.slow
def test_refined_evidence_of_digits_is_that_of_annealed_importance_sampling():
    torch.set_default_dtype(torch.float32)
    train, held_out = data.split(data.load("digits"), 0.2, seed=0)
    train, x = torch.as_tensor(train.x), torch.as_tensor(held_out.x[:20])
    torch.manual_seed(0)
    model = VAE(MLPDecoder(8, [128, 128], 64), 8, likelihoods.Binomial(16))
    guide = AmortizedNormal(model, MLPEncoder(64, [128, 128]))
    pyro_vae.fit(model, guide, train, epochs=60, batch_size=64, lr=2e-3, progress=False)
    report = pyro_vae.diagnose(model, guide, x, refined=True)
    evidence, error = annealed_evidence(model, x)
    difference = torch.as_tensor(report["log_evidence"].values) - evidence
    mine = torch.as_tensor(report["log_evidence_se"].values)
    spread = (error.square() + torch.where(mine.isfinite(), mine, 0.1).square()).sqrt()
    assert (abs(difference) < 5 * spread + 0.05).all(), difference
    assert abs(difference.mean()) < 4 * spread.square().sum().sqrt() / 20 + 0.02
    # the guide's own draws are far from it
    alone = torch.as_tensor(pyro_vae.diagnose(model, guide, x)["log_evidence"].values)
    assert (alone - evidence).mean() < -0.5
