"""Pairs of many kinds, each made afresh: what users write, for the tests of objectives, engines and fits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn

from tests import seeds

D, H, Z = 6, 5, 2


class Pair(NamedTuple):
    model: Callable[..., Any]
    guide: Callable[..., Any]
    mean_field: bool = True
    """Whether Pyro's TraceMeanField_ELBO applies."""


class Decoder(PyroModule):
    def __init__(self, prior: Any = None, size: int | None = None) -> None:
        super().__init__()
        self.prior = dist.Normal(torch.zeros(Z), 1.0) if prior is None else prior
        self.size = size
        self.net = nn.Sequential(nn.Linear(Z, H), nn.Tanh(), nn.Linear(H, D))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", self.size or len(x), subsample_size=len(x)):
            z = pyro.sample("z", self.prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self, size: int | None = None, layers: tuple[nn.Module, ...] = ()) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(nn.Linear(D, H), *layers, nn.Tanh())
        self.loc, self.raw = nn.Linear(H, Z), nn.Linear(H, Z)

    def posterior(self, h: Tensor) -> Any:
        return dist.Normal(self.loc(h), (self.raw(h) / 2).exp()).to_event(1)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", self.size or len(x), subsample_size=len(x)):
            pyro.sample("z", self.posterior(self.body(x)))


class StructuredEncoder(Encoder):
    def posterior(self, h: Tensor) -> Any:
        tril = torch.eye(Z) * 0.5 + 0.1 * torch.ones(Z, Z).tril()
        return dist.MultivariateNormal(self.loc(h), scale_tril=tril.expand(len(h), Z, Z))


class FlowEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.flow = dist.transforms.affine_autoregressive(Z, [4])

    def posterior(self, h: Tensor) -> Any:
        return dist.TransformedDistribution(super().posterior(h), [self.flow])


class GammaEncoder(Encoder):
    def posterior(self, h: Tensor) -> Any:
        return dist.Gamma(
            nn.functional.softplus(self.loc(h)) + 1.0, nn.functional.softplus(self.raw(h)) + 1.0
        ).to_event(1)


class ScoreEncoder(Encoder):
    def posterior(self, h: Tensor) -> Any:
        return dist.Bernoulli(logits=self.loc(h)).to_event(1)


def functions() -> Pair:
    """Everything in ``pyro.param``; one of them constrained."""

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.ones(Z, D))
        noise = pyro.param("noise", lambda: torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        encode = pyro.param("encode", lambda: 0.1 * torch.ones(D, Z))
        scale = pyro.param("scale", lambda: torch.ones(Z), constraint=dist.constraints.softplus_positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ encode, scale).to_event(1))

    return Pair(model, guide)


class TutorialVAE(nn.Module):
    """As in Pyro's tutorial: a plain module, registered by ``pyro.module`` in its own methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def tutorial() -> Pair:
    vae = TutorialVAE()
    return Pair(vae.model, vae.guide)


class Regression(PyroModule):
    """Global latents for Pyro's autoguides, one of them positive."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = PyroParam(torch.ones(()), dist.constraints.positive)

    def forward(self, x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, noise * self.offset).to_event(1), obs=x)


class TwoLatents(PyroModule):
    """z2 → z1 → x, with a guide that draws bottom-up when asked to: then no KL has a closed form that is
    right."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.bottom = nn.Linear(1, 1), nn.Linear(1, D)
        self.q1, self.q2 = nn.Linear(D, 1), nn.Linear(1, 1)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.top(z2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.bottom(z1)).to_event(1), obs=x)

    @pyro_method
    def bottom_up(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.q1(x), 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(self.q2(z1), 0.5).to_event(1))


def bottom_up() -> Pair:
    pair = TwoLatents()
    return Pair(pair.model, pair.bottom_up, mean_field=False)


def autoguided(guide: Callable[..., Any]) -> Pair:
    model = Regression()
    return Pair(model, guide(model), mean_field=False)


class Scaled(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Decoder()

    def forward(self, x: Tensor) -> None:
        with poutine.scale(scale=0.3):
            self.inner(x)


class Masked(Decoder):
    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(torch.zeros(Z), 1.0).to_event(1))
            with poutine.mask(mask=x[:, 0] > 0):
                pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


PAIRS: dict[str, Callable[[], Pair]] = {
    "normal": lambda: Pair(Decoder(), Encoder()),
    "rescaled to 100": lambda: Pair(Decoder(size=100), Encoder(size=100)),
    "dropout": lambda: Pair(Decoder(), Encoder(layers=(nn.Dropout(0.4),))),
    "batch norm": lambda: Pair(Decoder(), Encoder(layers=(nn.BatchNorm1d(H),))),
    "functions": functions,
    "tutorial": tutorial,
    "full covariance": lambda: Pair(Decoder(), StructuredEncoder(), mean_field=False),
    "flow": lambda: Pair(Decoder(), FlowEncoder()),
    "gamma": lambda: Pair(Decoder(dist.Gamma(2.0 * torch.ones(Z), 1.0)), GammaEncoder()),
    "score function": lambda: Pair(
        Decoder(dist.Bernoulli(0.3 * torch.ones(Z))), ScoreEncoder(), mean_field=False
    ),
    "scaled": lambda: Pair(Scaled(), Encoder()),
    "masked, no closed KL": lambda: Pair(Masked(), Encoder()),
    "drawn bottom-up": bottom_up,
    "AutoNormal": lambda: autoguided(autoguide.AutoNormal),
    "AutoMultivariateNormal": lambda: autoguided(autoguide.AutoMultivariateNormal),
    "AutoLowRank": lambda: autoguided(autoguide.AutoLowRankMultivariateNormal),
}


def observations(n: int = 8) -> Tensor:
    """Binary rows with at least one 1 in the first column."""
    x = (torch.rand(n, D, generator=seeds.generator(1)) < 0.5).to(torch.get_default_dtype())
    x[0, 0] = 1.0
    return x
