"""Proposals that adapt themselves find the posterior, and their densities are exact."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.posterior.evaluation.preparation import prepare
from pyro_vae.posterior.repair.mixture import Mixture, adapt_mixture
from pyro_vae.posterior.repair.mode import fit_mode
from pyro_vae.posterior.repair.proposals import (
    WIDE,
    WIDE_SHARE,
    Proposal,
    effective_draws,
    matched,
)
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, observations


def generators(n, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(n)]


def proposal(n=2, size=3):
    tril = torch.linalg.cholesky(torch.cov(torch.randn(size, 10)).expand(n, -1, -1))
    return Proposal(torch.randn(n, size), tril)


def posterior_of(model, n=4, seed=0):
    """The posterior of some observations, which the exact guide opens, and the observations."""
    x = observations(model, n, seed)
    pair = prepare(model, GaussianGuide.exact(model), x)
    values = next(pair.blocks(5, seed=0)).latents
    return UnconstrainedPosterior.of(pair, np.arange(n), values)[0], x


def standard(n, size, shift=0.0, scale=1.0):
    return Proposal(torch.full((n, size), shift), scale * torch.eye(size).repeat(n, 1, 1))


class TestProposal:
    def test_the_density_is_that_of_a_mixture_of_student_ts(self):
        q = proposal()
        free = q.draw(50, generators(2))

        def student(scale):
            return dist.MultivariateStudentT(torch.tensor(5.0), q.loc, scale * q.tril).log_prob(free)

        mixture = torch.logaddexp(math.log(1 - WIDE_SHARE) + student(1), math.log(WIDE_SHARE) + student(WIDE))
        torch.testing.assert_close(q.log_density(free), mixture)

    def test_draws_follow_the_density(self):
        """∫ N(u) du = 1, estimated with the weights N(u) / q(u)."""
        q = proposal()
        free = q.draw(100_000, generators(2))
        normal = dist.MultivariateNormal(q.loc + 0.3, scale_tril=q.tril)
        weight = (normal.log_prob(free) - q.log_density(free)).exp()
        torch.testing.assert_close(weight.mean(0), torch.ones(2), rtol=0.02, atol=0)
        mean = (weight[..., None] * free).mean(0)
        assert (abs(mean - normal.mean) < 0.02 * normal.stddev.max()).all()

    def test_an_observation_draws_the_same_whoever_else_is_there(self):
        q, three = proposal(n=3), generators(3)
        alone = q.part(torch.tensor([1])).draw(4, [generators(3)[1]])
        torch.testing.assert_close(q.draw(4, three)[:, [1]], alone)

    def test_white_and_back(self):
        q, white = proposal(), torch.randn(4, 2, 3)
        torch.testing.assert_close(q.to_white(q.from_white(white)), white)
        torch.testing.assert_close(q.from_white(white[0])[1], q.loc[1] + q.tril[1] @ white[0, 1])

    def test_many_dimensions_keep_most_draws(self):
        """With five degrees of freedom in fifty dimensions 14% would be effective for a Normal."""
        q = standard(1, 50)
        free = q.draw(4000, generators(1))
        weight = dist.Normal(0.0, 1.0).expand([50]).to_event(1).log_prob(free) - q.log_density(free)
        assert effective_draws(weight) > 0.5 * 4000


class TestMatched:
    def test_moments_of_weighted_draws(self):
        free = torch.randn(100_000, 2, 2)
        target = dist.MultivariateNormal(torch.tensor([0.5, -0.5]), torch.tensor([[0.8, 0.3], [0.3, 0.6]]))
        weight = target.log_prob(free) - dist.Normal(0.0, 1.0).log_prob(free).sum(-1)
        found = matched(free, weight)
        torch.testing.assert_close(found.loc, target.mean.expand(2, -1), atol=0.02, rtol=0)
        covariance = found.tril @ found.tril.mT
        torch.testing.assert_close(covariance, target.covariance_matrix.expand(2, -1, -1), atol=0.02, rtol=0)

    def test_unequal_weights_are_tempered(self):
        """A single draw has all the weight: alone it has no covariance."""
        free = torch.randn(1000, 1, 2)
        weight = torch.where(torch.arange(1000)[:, None] == 7, 0.0, -1000.0 - torch.rand(1000, 1))
        tril = matched(free, weight).tril
        assert (tril.diagonal(dim1=-2, dim2=-1) > 0.3).all()

    @pytest.mark.parametrize("nothing", [math.nan, -math.inf])
    def test_weights_that_tell_nothing(self, nothing):
        free, before = torch.randn(1000, 2, 2), standard(2, 2, shift=9.0)
        weight = torch.zeros(1000, 2)
        weight[:, 0] = nothing
        after = matched(free, weight, before)
        torch.testing.assert_close(after.loc[0], before.loc[0])
        torch.testing.assert_close(after.tril[0], before.tril[0])
        assert (abs(after.loc[1]) < 0.2).all()
        torch.testing.assert_close(matched(free, weight).loc[0], free.mean(0)[0])

    def test_an_overflow_does_not_stop_the_others(self):
        free = torch.randn(1000, 3, 2)
        free[:, 0], free[:, 1] = 1e200 * free[:, 0], math.inf
        found = matched(free, torch.zeros(1000, 3))
        assert torch.isfinite(found.tril).all()
        assert (abs(found.loc[2]) < 0.2).all()

    def test_impossible_draws_are_left_out(self):
        free, weight = torch.randn(1000, 1, 2), torch.zeros(1000, 1)
        free[:3], weight[:3] = math.inf, math.nan
        found = matched(free, weight)
        assert torch.isfinite(found.loc).all()
        assert torch.isfinite(found.tril).all()


def exact_moments(model, x, found, *, mean, scale):
    """Location within so many standard deviations, and standard deviations within a share."""
    sd = model.covariance.diagonal().sqrt()
    assert (abs(found.loc - model.mean(x)) / sd).max() < mean
    ratio = (found.tril @ found.tril.mT).diagonal(dim1=-2, dim2=-1).sqrt() / sd
    assert (abs(ratio - 1)).max() < scale


class TestMixture:
    def test_the_density_is_that_of_its_parts(self):
        one, other = proposal(), proposal()
        mixture = Mixture.of(one, other, share=torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
        free = mixture.draw(50, generators(2))
        both = torch.logaddexp(math.log(0.3) + one.log_density(free), math.log(0.7) + other.log_density(free))
        torch.testing.assert_close(mixture.log_density(free)[:, 0], both[:, 0])
        torch.testing.assert_close(mixture.log_density(free)[:, 1], one.log_density(free)[:, 1])

    def test_draws_follow_the_density(self):
        """∫ N(u) du = 1, estimated with the weights N(u) / q(u)."""
        mixture = Mixture.of(proposal(), proposal(), share=torch.full((2, 2), 0.5))
        free = mixture.draw(100_000, generators(2))
        normal = dist.MultivariateNormal(mixture.loc[:, 1] + 0.3, scale_tril=mixture.tril[:, 1])
        weight = (normal.log_prob(free) - mixture.log_density(free)).exp()
        torch.testing.assert_close(weight.mean(0), torch.ones(2), rtol=0.03, atol=0)

    def test_moments(self):
        mixture = Mixture.of(proposal(), proposal(), share=torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
        unit = mixture.moments()
        torch.testing.assert_close(unit.loc[1], mixture.loc[1, 0])
        torch.testing.assert_close(unit.tril[1] @ unit.tril[1].mT, mixture.tril[1, 0] @ mixture.tril[1, 0].mT)
        torch.testing.assert_close(unit.loc[0], 0.3 * mixture.loc[0, 0] + 0.7 * mixture.loc[0, 1])


def adapted(posterior, start):
    return adapt_mixture(posterior, Mixture.of(start), start, generators(len(start.loc)))


class TestAdapt:
    @pytest.mark.parametrize("shift", [0.0, 3.0])
    @pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
    def test_it_finds_the_posterior_from_beside_it(self, shift, scale):
        model = dense()
        posterior, x = posterior_of(model)
        found = adapted(posterior, standard(4, 3, shift, scale))
        assert (found.worth > 0.3).all()
        assert (found.least < model.log_evidence(x)).all()
        free = found.mixture.draw(4000, generators(4, seed=1))
        weight = posterior.log_density(free) - found.mixture.log_density(free)
        torch.testing.assert_close(
            weight.logsumexp(0) - math.log(4000), model.log_evidence(x), atol=0.2, rtol=0
        )

    def test_observations_that_have_settled_cost_nothing(self):
        seen = []

        class Watched(LinearGaussian):
            def forward(self, x):
                seen.append(x)
                return super().forward(x)

        model = Watched(dense().weight)
        posterior, x = posterior_of(model)
        start = Proposal(model.mean(x), torch.linalg.cholesky(model.covariance).repeat(4, 1, 1))
        start.loc[2] += 20.0
        seen.clear()
        adapted(posterior, start)
        rows = torch.cat(seen)
        often = [int((rows == one).all(1).sum()) for one in x]
        assert often[2] > 1.5 * max(often[0], often[1], often[3])


class TestFitMode:
    def test_it_reaches_the_exact_posterior_from_afar(self):
        model = dense(latent_dim=5, features=10)
        posterior, x = posterior_of(model)
        found = fit_mode(posterior, standard(4, 5, shift=30.0, scale=0.01))
        exact_moments(model, x, found, mean=0.01, scale=0.01)

    def test_an_impossible_draw_does_not_stop_the_others(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(torch.where(z > 0, z, torch.nan), 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.ones(len(x)), 0.1))

        pair = prepare(model, guide, torch.tensor([8.0, 6.0]))
        values = next(pair.blocks(5, seed=0)).latents
        posterior, _ = UnconstrainedPosterior.of(pair, np.arange(2), values)
        found = fit_mode(posterior, standard(2, 1, shift=0.5))
        torch.testing.assert_close(found.loc[:, 0], torch.tensor([4.0, 3.0]), atol=0.1, rtol=0)


def test_effective_draws():
    weights = torch.tensor([[0.0, math.nan, -math.inf], [0.0, 0.0, -math.inf], [-math.inf, 0.0, -math.inf]])
    torch.testing.assert_close(effective_draws(weights), torch.tensor([2.0, 2.0, 0.0]))
