import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to, constraints, kl_divergence

from pyro_vae.guides.pushforward import PushforwardDelta, PushforwardMessenger, push_forward

CASES = {
    "real": (constraints.real, dist.Normal(0.0, 1.0), ()),
    "positive": (constraints.positive, dist.Gamma(2.0, 1.0), ()),
    "interval": (constraints.interval(-1.0, 2.0), dist.Uniform(-1.0, 2.0), ()),
    "simplex": (constraints.simplex, dist.Dirichlet(torch.ones(3, dtype=torch.float64)), (2,)),
    "corr_cholesky": (constraints.corr_cholesky, dist.LKJCholesky(3, 1.0), (3,)),
    "vector": (constraints.positive, dist.LogNormal(torch.zeros(2), 1.0).to_event(1), (2,)),
}


@pytest.mark.parametrize("name", CASES)
def test_log_density_is_that_of_the_transformed_distribution(name):
    support, prior, shape = CASES[name]
    transform = biject_to(support)
    base = dist.Normal(torch.zeros(5, *shape), 1.0).to_event(len(shape))
    u = base.sample()
    point = push_forward(transform, u, prior.event_dim)
    assert point.batch_shape == (5,)
    pushed = dist.TransformedDistribution(
        dist.Normal(torch.zeros(5, *shape), 1.0).to_event(transform.domain.event_dim), [transform]
    ).to_event(prior.event_dim - transform.codomain.event_dim)
    log_q = base.log_prob(u) + point.log_prob(point.v)
    torch.testing.assert_close(log_q, pushed.log_prob(point.v), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(kl_divergence(point, prior), point.log_density - prior.log_prob(point.v))


def test_kl_of_pyros_own_delta_is_left_alone():
    v = torch.tensor([0.5, 2.0])
    delta = dist.Delta(v, log_density=torch.ones(2))
    torch.testing.assert_close(
        kl_divergence(delta, dist.Exponential(1.0)), -dist.Exponential(1.0).log_prob(v)
    )


def test_expanding_keeps_the_class_and_the_jacobian():
    point = push_forward(biject_to(constraints.positive), torch.randn(3), 0).expand((2, 3))
    assert isinstance(point, PushforwardDelta)
    assert point.log_density.shape == (2, 3)


def test_masked_out_sites_skip_the_jacobian():
    with poutine.mask(mask=False):
        point = push_forward(biject_to(constraints.positive), torch.randn(3), 0)
    assert (point.log_density == 0).all()


def test_messenger_turns_deltas_and_nothing_else():
    def program():
        pyro.sample("delta", dist.Delta(torch.ones(3), log_density=torch.ones(3)).to_event(0))
        pyro.sample("normal", dist.Normal(0.0, 1.0))

    with PushforwardMessenger():
        trace = poutine.trace(program).get_trace()
    assert type(trace.nodes["delta"]["fn"]) is PushforwardDelta
    assert type(trace.nodes["normal"]["fn"]) is dist.Normal
    torch.testing.assert_close(trace.nodes["delta"]["fn"].log_density, torch.ones(3))
