import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA, VAE, MLPDecoder, MLPEncoder, reconstruct, traverse
from pyro_vae.models.likelihoods import Categorical


def exact_pair():
    model = PPCA(torch.randn(4, 2), torch.randn(4), 0.5)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", model.posterior(x))

    return model, guide


def test_reconstruction_is_the_posterior_mean_of_x():
    model, guide = exact_pair()
    x = torch.randn(3, 4)
    expected = model.decode(model.posterior(x).mean).mean
    error = reconstruct(model, guide, x, draws=1000) - expected
    # standard error of the average over draws, from the posterior covariance
    covariance = model.weight @ model.posterior(x).covariance_matrix @ model.weight.mT
    assert (error.abs() < 4.5 * (covariance.diagonal(dim1=-2, dim2=-1) / 1000).sqrt()).all()


def test_reconstruction_by_one_draw_is_the_mean_at_that_draw():
    model = VAE(MLPDecoder(2, [5], 6), 2, "bernoulli")
    guide = AmortizedNormal(model, MLPEncoder(6, [5]))
    x = torch.ones(3, 6)
    guide(x)
    torch.manual_seed(1)
    ours = reconstruct(model, guide, x)
    torch.manual_seed(1)
    assert_close(ours, model.decode(guide(x)["z"]).mean)
    assert not ours.requires_grad


def test_reconstruction_of_a_users_conditional_model():
    def model(x, y):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(z + y, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(x - y))

    x, y = torch.randn(2, 5)
    assert_close(reconstruct(model, guide, x, y, site="obs"), x)
    with pytest.raises(ValueError, match=r"^site is 'x'; give one of the model's sample sites, .*z, obs$"):
        reconstruct(model, guide, x, y)


def test_categories_have_no_mean():
    model = VAE(MLPDecoder(2, [5], 3, outputs=4), 2, Categorical(4))
    guide = AmortizedNormal(model, MLPEncoder(3, [5]))
    with pytest.raises(ValueError, match=r"^site is 'x', whose distribution has no mean .*; give"):
        reconstruct(model, guide, torch.zeros(2, 3))


def test_traversal_moves_one_dimension_at_a_time():
    model = PPCA(torch.randn(4, 3), torch.randn(4), 0.5)
    origin = torch.randn(3)
    walk = traverse(model, origin, dims=[0, 2], span=2.0, steps=5)
    assert walk.shape == (2, 5, 4)
    offsets = torch.linspace(-2, 2, 5)[:, None]
    assert_close(walk[0], model.decode(origin).mean + offsets * model.weight[:, 0])
    assert_close(walk[1], model.decode(origin).mean + offsets * model.weight[:, 2])
    assert traverse(model, origin).shape == (3, 7, 4)
