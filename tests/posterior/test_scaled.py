"""A ``poutine.scale`` belongs to the objective: diagnostics judge the model without it."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae
from pyro_vae.guides import AmortizedNormal

X = torch.linspace(-2.0, 2.0, 9)


def model(x: Tensor) -> None:
    """p(z|x) = N(x / 2, 1 / 2) and p(x) = N(0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tempered(x: Tensor) -> None:
    with pyro.poutine.scale(scale=3.0):
        model(x)


class Rows(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(-1))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return tempered, AmortizedNormal(tempered, Rows(1, 4))


def test_the_refined_posterior_and_evidence_are_those_of_the_model_itself(pair):
    found = pyro_vae.diagnose(*pair, X, refined=True)
    exact = dist.Normal(0.0, 2**0.5).log_prob(X).numpy()
    assert found["elbo"].values == pytest.approx(exact, abs=1e-5)
    posterior = pyro_vae.refine(*pair, X).posterior(X)
    torch.testing.assert_close(posterior.mean.flatten(), X / 2, atol=1e-5, rtol=0, check_dtype=False)


def test_the_weights_are_those_of_the_model_itself(pair):
    """log p(x, z) − log q(z|x), with the same z where the model has no scale."""
    _, guide = pair
    plain = pyro_vae.log_weights(model, guide, X, draws=50)
    np.testing.assert_allclose(pyro_vae.log_weights(tempered, guide, X, draws=50), plain)
