"""Linear-Gaussian pairs, whose posterior and evidence are known in closed form (Tipping and Bishop, 1999)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from tests import seeds


class LinearGaussian(PyroModule):
    """z ~ N(0, I), x | z ~ N(W z, noise² I)."""

    def __init__(self, weight: Tensor, noise: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.noise = noise

    @property
    def precision(self) -> Tensor:
        """Of z given x, the same for every x."""
        return torch.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.noise**2

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)

    def mean(self, x: Tensor) -> Tensor:
        return x @ self.weight @ self.covariance / self.noise**2

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(len(self.weight))
        return dist.MultivariateNormal(torch.zeros(len(self.weight)), covariance).log_prob(x)

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            size = self.weight.shape[1]
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)


class GaussianGuide(PyroModule):
    """The right mean, and any covariance: Cholesky factor ``scale_tril``, or diagonal ``scale``."""

    def __init__(
        self, model: LinearGaussian, *, scale: Tensor | None = None, scale_tril: Tensor | None = None
    ) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter((model.weight @ model.covariance).detach() / model.noise**2)
        self.register_buffer("scale", scale)
        self.register_buffer("scale_tril", scale_tril)

    @classmethod
    def exact(cls, model: LinearGaussian, factor: float = 1.0) -> GaussianGuide:
        """The posterior, with standard deviations ``factor`` times the true ones."""
        return cls(model, scale_tril=factor * torch.linalg.cholesky(model.covariance))

    @classmethod
    def mean_field(cls, model: LinearGaussian) -> GaussianGuide:
        """The best diagonal: σᵢ² = 1 / Pᵢᵢ."""
        return cls(model, scale=model.precision.diagonal() ** -0.5)

    def forward(self, x: Tensor) -> None:
        loc = x @ self.gain
        with pyro.plate("data", len(x)):
            if self.scale is not None:
                pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))
            else:
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.scale_tril))


def dense(latent_dim: int = 3, features: int = 6, seed: int = 1) -> LinearGaussian:
    """A model with a correlated posterior; it is given, so that it is as hard on every random stream."""
    return LinearGaussian(torch.randn(features, latent_dim, generator=torch.Generator().manual_seed(seed)))


def diagonal(latent_dim: int = 2, noise: float = 0.5) -> LinearGaussian:
    """A model with an uncorrelated posterior."""
    return LinearGaussian(torch.eye(latent_dim + 1, latent_dim), noise)


def observations(model: LinearGaussian, n: int, seed: int = 0) -> Tensor:
    """Data from the model."""
    generator = seeds.generator(seed)
    z = torch.randn(n, model.weight.shape[1], generator=generator)
    noise = torch.randn(n, len(model.weight), generator=generator)
    return z @ model.weight.T + model.noise * noise


def mean_field_gap(model: LinearGaussian) -> float:
    """KL of the best diagonal Gaussian from the posterior: ½(Σ log Pᵢᵢ − log|P|)."""
    precision = model.precision
    return float(precision.diagonal().log().sum() - torch.logdet(precision)) / 2


def gaussian_kl(model: LinearGaussian, x: Tensor, covariance: Tensor) -> Tensor:
    """KL of N(true mean, covariance) from the prior N(0, I), per observation."""
    loc, size = model.mean(x), len(covariance)
    return 0.5 * (covariance.trace() + loc.square().sum(-1) - size - torch.logdet(covariance))
