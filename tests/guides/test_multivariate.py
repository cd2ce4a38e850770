import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vae.guides.multivariate import LogScaleMultivariateNormal, unit_lower_triangular
from pyro_vae.guides.normal import LogScaleNormal


def parts(*batch_shape, dim=4):
    loc, log_scale = torch.randn(*batch_shape, dim), torch.randn(*batch_shape, dim)
    return loc, log_scale, unit_lower_triangular(torch.randn(*batch_shape, dim * (dim - 1) // 2), dim)


def reference(loc, log_scale, unit_tril):
    return torch.distributions.MultivariateNormal(loc, scale_tril=log_scale.exp().unsqueeze(-1) * unit_tril)


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (5,), (5, 2)])
def test_density_and_shapes_are_those_of_torch(batch_shape, sample_shape):
    q = LogScaleMultivariateNormal(*parts(*batch_shape))
    p = reference(q.loc, q.log_scale, q.unit_tril)
    draw = q.rsample(sample_shape)
    assert draw.shape == sample_shape + batch_shape + (4,)
    torch.testing.assert_close(q.log_prob(draw), p.log_prob(draw))
    for moment in ("mean", "stddev", "covariance_matrix", "precision_matrix", "scale_tril"):
        torch.testing.assert_close(getattr(q, moment), getattr(p, moment))
    torch.testing.assert_close(q.entropy(), p.entropy())


def test_draws_are_those_of_torch_under_the_same_noise():
    q = LogScaleMultivariateNormal(*parts(3))
    torch.manual_seed(1)
    draw = q.rsample((2,))
    torch.manual_seed(1)
    torch.testing.assert_close(draw, reference(q.loc, q.log_scale, q.unit_tril).rsample((2,)))


def test_parts_broadcast_and_expand():
    _, log_scale, unit_tril = parts()
    q = LogScaleMultivariateNormal(torch.randn(3, 4), log_scale, unit_tril)
    assert q.batch_shape == (3,)
    expanded = q.expand((2, 3))
    assert isinstance(expanded, LogScaleMultivariateNormal)
    value = torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(expanded.log_prob(value), q.log_prob(value))
    assert expanded.entropy().shape == (2, 3)


def test_log_prob_of_one_value_for_a_batch():
    q = LogScaleMultivariateNormal(*parts(3))
    value = torch.randn(4)
    torch.testing.assert_close(q.log_prob(value), q.log_prob(value.expand(3, 4)))


@pytest.mark.parametrize("log_scale", [-60.0, 60.0])
def test_log_prob_in_float32_where_the_variance_is_out_of_range(log_scale):
    loc, _, unit_tril = (part.float() for part in parts(3))
    eps = torch.randn(3, 4)
    scale = torch.full((3, 4), log_scale, dtype=torch.float32)
    q = LogScaleMultivariateNormal(torch.zeros_like(loc), scale, unit_tril)
    value = (scale.double().exp() * (unit_tril.double() @ eps.unsqueeze(-1)).squeeze(-1)).float()
    exact = -0.5 * eps.square().sum(-1) - 4 * log_scale - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(q.log_prob(value).double(), exact, rtol=1e-4, atol=0)


def test_kl_to_independent_normals_is_that_to_their_joint():
    q = LogScaleMultivariateNormal(*parts(3))
    loc, scale = torch.randn(4), torch.rand(4) + 0.5
    joint = torch.distributions.MultivariateNormal(loc, torch.diag(scale.square()))
    expected = kl_divergence(reference(q.loc, q.log_scale, q.unit_tril), joint)
    torch.testing.assert_close(kl_divergence(q, dist.Normal(loc, scale).to_event(1)), expected)
    torch.testing.assert_close(kl_divergence(q, LogScaleNormal(loc, scale.log()).to_event(1)), expected)
    torch.testing.assert_close(kl_divergence(q, joint), expected)


def test_kl_to_other_independents_is_left_to_sampling():
    q = LogScaleMultivariateNormal(*parts(3))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(torch.zeros(4), 1.0).to_event(1))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))


def test_gradients_reach_every_part():
    leaves = [part.requires_grad_() for part in parts(3)]
    q = LogScaleMultivariateNormal(*leaves)
    kl = kl_divergence(q, dist.Normal(torch.zeros(4), 1.0).to_event(1))
    (kl + q.rsample().square().sum(-1)).sum().backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_validation_refuses_a_triangle_that_is_not_unit():
    loc, log_scale, unit_tril = parts()
    with pytest.raises(ValueError, match="unit_tril"):
        LogScaleMultivariateNormal(loc, log_scale, 2 * unit_tril)


def test_triangle_is_filled_row_by_row_in_every_batch_shape():
    below = torch.arange(12.0).reshape(2, 6)
    triangle = unit_lower_triangular(below, 4)
    rows, columns = torch.tril_indices(4, 4, -1)
    torch.testing.assert_close(triangle[:, rows, columns], below)
    torch.testing.assert_close(triangle.triu(), torch.eye(4).expand(2, 4, 4))
    torch.testing.assert_close(torch.vmap(lambda b: unit_lower_triangular(b, 4))(below), triangle)
    torch.testing.assert_close(unit_lower_triangular(torch.empty(3, 0), 1), torch.ones(3, 1, 1))


def test_density_of_a_reparameterized_draw_is_exact():
    """Where the draw itself has lost its noise: σ/|μ| = 1e-8 in float32."""
    loc, log_scale = torch.ones(1000, 4).float(), torch.full((1000, 4), -8 * math.log(10.0)).float()
    q = LogScaleMultivariateNormal(loc.requires_grad_(), log_scale, parts(1000)[2].float())
    torch.manual_seed(1)
    draw = q.rsample()
    torch.manual_seed(1)
    eps = torch.randn_like(loc)
    exact = -0.5 * eps.square().sum(-1) - log_scale.sum(-1) - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(q.log_prob(draw), exact)
    assert (q.log_prob(draw.clone()) - exact).abs().mean() > 0.5


def test_gradients_of_densities_of_draws():
    leaves = [part.requires_grad_() for part in parts(3)]
    q = LogScaleMultivariateNormal(*leaves)
    total = torch.autograd.grad(q.log_prob(q.rsample()).sum(), leaves, allow_unused=True)
    assert total[0] is None or (total[0] == 0).all()
    torch.testing.assert_close(total[1], -torch.ones(3, 4))
    draw = q.sample()  # no gradient of its own: the score
    score = torch.autograd.grad(q.log_prob(draw).sum(), leaves)
    expected = torch.autograd.grad(reference(*leaves).log_prob(draw).sum(), leaves)
    for ours, theirs in zip(score[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(score[2].tril(-1), expected[2].tril(-1))
