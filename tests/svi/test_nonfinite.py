"""A fit that meets numbers that are not finite keeps its last good state, and says where they come from."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae import data
from pyro_vae.guides import AmortizedNormal, AutoNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.svi import ELBO, NonFiniteError, fit
from tests.svi.engines.native.cases import needs_compiler

DIGITS = data.load("digits").x[:256]


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


def digits_pair(
    scale: str, likelihood: Any = None, encoder: nn.Module | None = None
) -> tuple[VAE, AmortizedNormal]:
    likelihood = likelihoods.Binomial(16) if likelihood is None else likelihood
    model = VAE(MLPDecoder(4, (32,), 64), 4, likelihood)
    return model, AmortizedNormal(model, encoder or MLPEncoder(64, (32,)), scale=scale)


def refusal(model: Any, guide: Any, x: Any = DIGITS, **options: Any) -> str:
    """What a fit that cannot go on says; the parameters that it leaves are finite."""
    options = {"epochs": 20, "batch_size": 64, "progress": False, "device": "cpu", **options}
    with pytest.raises(NonFiniteError) as caught:
        fit(model, guide, x, **options)
    for program in (model, guide):
        for tensor in getattr(program, "parameters", list)():
            assert torch.isfinite(tensor).all()
    message = str(caught.value)
    assert "3 steps in a row were not finite; the last good parameters are kept" in message
    assert "smaller lr" in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("engine", ["eager", "captured"])
@pytest.mark.parametrize("scale", ["logvar", "logstd"])
def test_a_learning_rate_of_10(scale: str, engine: str) -> None:
    """With leaky units: every ReLU of an encoder may die at the first step, and then nothing overflows."""
    encoder = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU())
    message = refusal(*digits_pair(scale, encoder=encoder), lr=10.0, engine=engine)
    assert "the guide's site 'z' has scale = inf (raw = " in message
    assert "σ = inf) at latent dimension " in message


@needs_compiler
@pytest.mark.parametrize(("likelihood", "factor"), [("normal", 1e18), ("student-t", 1e18), ("normal", 1e30)])
def test_huge_data_are_the_same_to_every_engine(likelihood: str, factor: float) -> None:
    """Where squares of the gradient overflow, though it does not, and where the densities do."""
    told = []
    for engine in ("eager", "captured", "native"):
        torch.manual_seed(0)
        pair = digits_pair("softplus", likelihoods.get(likelihood))
        told.append(refusal(*pair, DIGITS * factor, engine=engine))
    assert told[0] == told[1] == told[2]
    assert "data scaled to unit size (counts: by log1p in the encoder)" in told[0]


def test_data_scaled_by_a_million() -> None:
    message = refusal(*digits_pair("logvar", likelihoods.Normal()), DIGITS * 1e6, lr=1e-2)
    assert "the guide's site 'z' has " in message
    assert "(raw = " in message
    assert "σ = inf" in message
    assert "data scaled to unit size (counts: by log1p in the encoder)" in message


def in_a_step(module: nn.Module) -> bool:
    """Whether this call is a step of the fit, not one of the runs that look at the pair before the first."""
    return module.training and torch.is_grad_enabled()


class Underflows(nn.Module):
    """A guide of a user's own: its σ = exp(raw), not told in logs, becomes 0 in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.raw = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.calls = 0

    def forward(self, x: Tensor) -> None:
        self.calls += in_a_step(self)
        with pyro.plate("data", len(x)):
            scale = (self.raw - 50.0 * self.calls).exp().expand(len(x), 4)
            pyro.sample("z", dist.Normal(self.loc, scale, validate_args=False).to_event(1))


def test_a_scale_that_underflows() -> None:
    model, _ = digits_pair("logvar")
    message = refusal(model, Underflows(), lr=1e-2, engine="eager")
    assert "the guide's site 'z' has scale = 0 (σ = 0) at latent dimension 0, row 0 of the batch" in message
    assert "scale map" in message


class Breaks(nn.Module):
    """An encoder that returns inf after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.linear, self.calls, self.after = nn.Linear(64, 8), 0, after

    def forward(self, x: Tensor) -> Tensor:
        self.calls += in_a_step(self)
        features = self.linear(x)
        return features * math.inf if self.calls > self.after else features


def test_an_encoder_that_returns_inf() -> None:
    message = refusal(*digits_pair("softplus", encoder=Breaks(after=5)), engine="eager")
    assert "the guide's site 'z' has loc = " in message
    assert "at latent dimension 0, row 0 of the batch" in message


def test_parameters_are_those_of_the_last_finite_step() -> None:
    """A fit that breaks after five steps leaves what a fit of five steps gives."""
    kept = []
    for steps, after in ((5, 100), (None, 5)):
        torch.manual_seed(0)
        model, guide = digits_pair("softplus", encoder=Breaks(after))
        if steps is None:
            refusal(model, guide, engine="eager", lr=1e-3)
        else:
            fit(model, guide, DIGITS, steps=5, batch_size=64, engine="eager", progress=False, device="cpu")
        kept.append([p.detach().clone() for m in (model, guide) for p in m.parameters()])
    for ours, theirs in zip(*kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_names_itself_and_the_widest_latent() -> None:
    class Root(nn.Module):
        """Its derivative at zero is infinite."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 64))

        def forward(self, z: Tensor) -> Tensor:
            return (z @ self.weight).abs().sqrt()

    model = VAE(Root(), 4, "normal")
    guide = AmortizedNormal(model, nn.Linear(64, 8), scale="logstd", init_scale=0.01)
    message = refusal(model, guide, lr=1e-3)
    assert "the loss is finite, but the gradient of model.observation.network.weight is not" in message
    assert "site 'z' is at raw = -4.61, σ = 0.01 at latent dimension 0, row 0 of the batch" in message


def test_an_observation_that_cannot_be() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Exponential(z.exp() * 0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5))

    message = refusal(model, guide, np.ones(8), steps=10)
    assert "log p of the model's site 'x' is -inf for row 0 of the batch" in message
    assert "site 'z' is at σ = 0.5 at latent dimension 0" in message


def test_an_autoguide_tells_its_raw_value() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model, scale="logstd")
    guide(torch.zeros(4))
    with torch.no_grad():
        guide.scales.z_unconstrained.fill_(2000.0)
    message = refusal(model, guide, np.zeros(4), steps=10, objective=ELBO(analytic_kl=False))
    assert "site 'z_unconstrained' has scale = inf (raw = 2e+03, σ = inf) at latent dimension 0" in message
