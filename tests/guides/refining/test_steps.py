"""Refinement is exact where the cubature is, never loses, and does not care how latents are written."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vae.guides.refining.density import LocalDensity
from pyro_vae.guides.refining.steps import Normals, refined_normals
from pyro_vae.models import PPCA


def ppca(latent_dim=4, features=9, n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = PPCA(torch.randn(features, latent_dim, generator=generator), torch.ones(features), 0.4)
    x = 2 * torch.randn(n, features, generator=generator)
    return model, x


def standard(n, size, *, diagonal=False):
    factor = torch.ones(n, size) if diagonal else torch.eye(size).repeat(n, 1, 1)
    return Normals(torch.zeros(n, size), factor)


def refined(model, x, start, *, steps=12, stop=0.1):
    density = LocalDensity(model, {"z": start.loc.shape[1]}, (x,), {}, rows=len(x))
    return refined_normals(density, start, steps=steps, stop=stop)


def elbo(model, x, normals, draws=200_000):
    """Of full Normals, by draws, with its standard error."""
    q = dist.MultivariateNormal(normals.loc, scale_tril=normals.factor)
    z = q.sample((draws,))
    density = LocalDensity(model, {"z": z.shape[-1]}, (x,), {}, rows=len(x))
    weight = density(z) - q.log_prob(z)
    return weight.mean(0), weight.std(0) / math.sqrt(draws)


@pytest.mark.parametrize("off", [0.0, 0.05, 1.0])
def test_a_linear_gaussian_model_is_exact_in_three_steps(off):
    model, x = ppca()
    exact = model.posterior(x)
    start = Normals(off + exact.loc, (0.5 + off) * torch.eye(4).repeat(len(x), 1, 1))
    result = refined(model, x, start, steps=3)
    covariance = result.normals.factor @ result.normals.factor.mT
    torch.testing.assert_close(result.normals.loc, exact.loc, rtol=0, atol=1e-5)
    torch.testing.assert_close(covariance, exact.covariance_matrix.expand_as(covariance), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.elbo, model.log_evidence(x), rtol=0, atol=1e-5)
    assert result.converged.all()
    assert (result.normals.factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert not result.normals.factor.triu(1).any()


def test_the_diagonal_form_is_the_best_mean_field_normal():
    model, x = ppca()
    result = refined(model, x, standard(len(x), 4, diagonal=True), steps=6)
    precision = model.posterior(x).precision_matrix[0]
    torch.testing.assert_close(result.normals.loc, model.posterior(x).loc, rtol=0, atol=1e-5)
    best = precision.diagonal().rsqrt().expand_as(result.normals.factor)
    torch.testing.assert_close(result.normals.factor, best, rtol=0, atol=1e-5)
    gap = model.log_evidence(x) - result.elbo
    torch.testing.assert_close(gap, model.mean_field_gap().expand_as(gap), rtol=0, atol=1e-5)


def counts(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson((1.5 + z[..., 0]).exp()), obs=x)


def test_a_poisson_count_of_a_normal_rate_against_quadrature():
    x = torch.tensor([0.0, 1.0, 3.0, 10.0, 40.0])
    result = refined(counts, x, standard(5, 1))
    grid = torch.linspace(-12.0, 12.0, 40_001)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Poisson((1.5 + grid).exp()).log_prob(x[:, None])
    evidence = joint.logsumexp(-1) + math.log(grid[1] - grid[0])
    loc, scale = result.normals.loc, result.normals.factor[..., 0]
    q = dist.Normal(loc, scale).log_prob(grid)
    of_q = ((q.exp() * (joint - q)).sum(-1)) * (grid[1] - grid[0])
    assert (evidence - of_q < 0.02).all(), evidence - of_q
    assert (of_q <= evidence + 1e-6).all()


class Curved(torch.nn.Module):
    """A decoder with kinks and a count likelihood."""

    def __init__(self, size, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(size, 16), torch.nn.ReLU(), torch.nn.Linear(16, 6))
        self.size = size

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.size), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson((2 * self.net(z)).exp()).to_event(1), obs=x)


@given(
    size=st.integers(1, 5), seed=st.integers(0, 10**6), scale=st.floats(1e-3, 3.0), far=st.floats(0.0, 3.0)
)
@settings(max_examples=8, deadline=None)
def test_the_elbo_of_no_observation_falls(size, seed, scale, far):
    model, x = Curved(size, seed), torch.poisson(3 * torch.ones(8, 6))
    start = Normals(far * torch.randn(8, size), scale * torch.eye(size).repeat(8, 1, 1))
    result = refined(model, x, start)
    assert (result.elbo >= result.elbo_before).all()
    before, before_se = elbo(model, x, start, draws=4_000)
    after, after_se = elbo(model, x, result.normals, draws=4_000)
    known = torch.isfinite(before) & (before_se < 1.0)
    # the cubature is exact for cubics only, so an observation that has nothing to gain may seem to
    assert (after > before - 6 * (before_se + after_se) - 0.1)[known].all()


def test_scales_and_rotations_of_the_latents_do_not_matter():
    model, x = Curved(3, 1), torch.poisson(3 * torch.ones(8, 6))
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    change = rotation * torch.tensor([0.1, 1.0, 30.0])

    def rewritten(x):
        """The same with z = change · w."""
        prior = dist.MultivariateNormal(torch.zeros(3), scale_tril=_cholesky(torch.linalg.inv(change)))
        with pyro.plate("data", len(x)):
            w = pyro.sample("z", prior)
            pyro.sample("x", dist.Poisson((2 * model.net(w @ change.T)).exp()).to_event(1), obs=x)

    start = standard(8, 3)
    inverse = torch.linalg.inv(change)
    there = refined(rewritten, x, Normals(start.loc @ inverse.T, inverse @ start.factor))
    here = refined(model, x, start)
    torch.testing.assert_close(there.elbo, here.elbo)
    torch.testing.assert_close(there.normals.loc @ change.T, here.normals.loc)
    factor = change @ there.normals.factor
    torch.testing.assert_close(factor @ factor.mT, here.normals.factor @ here.normals.factor.mT)


def _cholesky(root):
    return torch.linalg.cholesky(root @ root.T)


def test_points_where_the_density_is_not_finite_shrink_the_step_and_end_nothing():
    def cliff(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)
            # nowhere beyond 2: infinite for one observation, not a number for the other
            over = torch.where(z.norm(dim=-1) > 2, torch.where(x > 0, -torch.inf, torch.nan), 0.0)
            pyro.factor("edge", over)

    x = torch.tensor([1.0, -1.0])
    start = Normals(torch.zeros(2, 2), 40 * torch.eye(2).repeat(2, 1, 1))  # every point lies beyond
    result = refined(cliff, x, start, steps=20)
    assert torch.isneginf(result.elbo_before).all()
    assert torch.isfinite(result.elbo).all()
    assert torch.isfinite(result.normals.loc).all()
    assert torch.isfinite(result.normals.factor).all()


def test_where_nothing_is_finite_the_start_comes_back():
    def impossible(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("never", torch.where(x > 0, torch.nan, -z.square().sum(-1)))

    result = refined(impossible, torch.tensor([1.0, -1.0]), standard(2, 2))
    assert result.converged.tolist() == [False, True]
    torch.testing.assert_close(result.normals.loc[0], torch.zeros(2))
    torch.testing.assert_close(result.normals.factor[0], torch.eye(2))
    torch.testing.assert_close(result.normals.factor[1], torch.eye(2) / math.sqrt(3))


def test_float32_is_enough():
    model, x = ppca()
    single = PPCA(model.weight.float(), model.loc.float(), 0.4)
    start = Normals(torch.zeros(12, 4).float(), torch.eye(4).float().repeat(12, 1, 1))
    result = refined(single, x.float(), start)
    assert result.elbo.dtype == torch.float32
    torch.testing.assert_close(result.elbo.double(), model.log_evidence(x), rtol=0, atol=1e-3)
