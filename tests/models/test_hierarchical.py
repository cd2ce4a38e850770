import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch import nn
from torch.testing import assert_close

from pyro_vae import scales
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import HierarchicalVAE, MLPDecoder, MLPEncoder


def two_layers(**kwargs):
    return HierarchicalVAE(
        MLPDecoder(3, [5], 6), MLPDecoder(2, [5], 3, outputs=2), (3, 2), "bernoulli", **kwargs
    )


class BottomUp(PyroModule):
    """A structured guide: q(z₁|x) q(z₂|z₁)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.first(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(self.second(z1), 1.0).to_event(1))


def some_data(n=8):
    return torch.randint(0, 2, (n, 6)).double()


def test_joint_density():
    model, x = two_layers(scale=scales.get("softplus")), some_data()
    trace = poutine.trace(model).get_trace(x)
    z1, z2 = trace.nodes["z1"]["value"], trace.nodes["z2"]["value"]
    loc, raw = model.layer.network(z2).chunk(2, -1)
    softplus = scales.get("softplus")
    sigma = softplus(raw + softplus.inv(torch.tensor(1.0)))
    expected = (
        dist.Normal(0, 1).log_prob(z2).sum()
        + dist.Normal(loc, sigma).log_prob(z1).sum()
        + model.decode(z1).log_prob(x).sum()
    )
    assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize(
    ("make_guide", "elbo"),
    [
        (lambda model: AmortizedNormal(model, MLPEncoder(6, [4])), Trace_ELBO()),
        (lambda model: AmortizedNormal(model, MLPEncoder(6, [4])), TraceMeanField_ELBO()),
        (lambda model: BottomUp(), Trace_ELBO()),
    ],
)
def test_is_fitted_by_an_amortized_and_a_structured_guide(make_guide, elbo):
    model = two_layers()
    guide = make_guide(model)
    x = some_data(30)
    guide(x)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model, guide, Adam({"lr": 1e-2}), elbo)
    losses = [svi.step(x) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all((p != before[name]).any() for name, p in model.named_parameters())
    draws = Predictive(poutine.uncondition(model), guide=guide, num_samples=3, parallel=True)(x)
    assert draws["x"].shape == (3, 30, 6)


def test_the_second_layer_has_an_analytic_kl():
    """Given z₂, the term of z₁ is exact: only z₂ and the likelihood are sampled."""
    model = two_layers()
    guide = AmortizedNormal(model, MLPEncoder(6, [4]))
    x = some_data(2)
    guide(x)
    with torch.no_grad():
        model.observation.network.output.weight.zero_()
        model.layer.network.output.weight.zero_()
        losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide, x) for _ in range(5)])
    assert_close(losses, losses[:1].expand(5))


def test_draws_copies_and_shapes():
    model = two_layers()
    assert model.sample(4).shape == (4, 6)
    assert model.decode(torch.randn(2, 5, 3)).batch_shape == (2, 5)
    low = copy.deepcopy(model).float()
    assert low.sample(2).dtype == torch.float32
    with pytest.raises(ValueError, match=r"latent_dims\[0\]=4"):
        HierarchicalVAE(MLPDecoder(4, [5], 6), MLPDecoder(2, [5], 3, outputs=2), (4, 2), "bernoulli")
    with pytest.raises(ValueError, match="x has shape"):
        model(torch.zeros(4, 5))
