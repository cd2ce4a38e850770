"""Distributions that are told the log of their scale or rate, and whose density uses that log itself.

A decoder computes log σ (or log λ) on the way to σ. A density that is only given σ has to take log(exp(·)),
which is −inf, and its gradient NaN, as soon as σ underflows. These two keep the log. They serve the observed
side of a model, p(x|z) and p(z₁|z₂); they know nothing of the guides.
"""

__all__ = ["LocationScale", "LogRatePoisson"]

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class LocationScale(TorchDistribution):
    r"""``loc + exp(log_scale) * e``, where ``e`` follows a standard distribution over the reals.

    .. math:: \log p(x) = \log p_e\big((x - \mu)\, e^{-\log\sigma}\big) - \log\sigma

    Parameters
    ----------
    standard
        The distribution of ``e``, with batch shape ``()`` or one that broadcasts with ``loc``.
    loc, log_scale
        Location and log scale; they broadcast to the batch shape.

    Examples
    --------
    >>> standard = dist.Normal(torch.tensor(0.0), torch.tensor(1.0))
    >>> LocationScale(standard, torch.tensor(0.0), torch.tensor(-80.0)).log_prob(torch.tensor(0.0))
    tensor(79.0811)
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(
        self, standard: TorchDistribution, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.standard = standard
        self.loc = loc
        self.log_scale = log_scale
        shape = torch.broadcast_shapes(standard.batch_shape, loc.shape, log_scale.shape)
        super().__init__(shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:
        """The scale, exp(log_scale)."""
        return self.log_scale.exp()

    @property
    def mean(self) -> Tensor:
        """``loc + scale * E[e]``."""
        return (self.loc + self.scale * self.standard.mean).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """``scale² * Var[e]``."""
        return (self.scale.square() * self.standard.variance).expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LocationScale":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        return LocationScale(
            self.standard, self.loc.expand(shape), self.log_scale.expand(shape), validate_args=False
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of shape ``sample_shape + batch_shape``, differentiable in ``loc`` and ``log_scale``."""
        noise: Tensor = self.standard.expand(self.batch_shape).rsample(sample_shape)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, without taking the log of a scale."""
        if self._validate_args:
            self._validate_sample(value)
        standardized = (value - self.loc) * torch.exp(-self.log_scale)
        log_prob: Tensor = self.standard.log_prob(standardized) - self.log_scale
        return log_prob

    def cdf(self, value: Tensor) -> Tensor:
        """P(X ≤ value)."""
        cdf: Tensor = self.standard.cdf((value - self.loc) * torch.exp(-self.log_scale))
        return cdf


class LogRatePoisson(dist.Poisson):
    r"""A Poisson told log λ.

    .. math:: \log p(x) = x \log\lambda - e^{\log\lambda} - \log x!

    Examples
    --------
    >>> LogRatePoisson(torch.tensor(-200.0)).log_prob(torch.tensor(1.0))
    tensor(-200.)
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogRatePoisson":
        """The same distribution with a larger batch shape."""
        return LogRatePoisson(self.log_rate.expand(torch.Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, without taking the log of a rate."""
        if self._validate_args:
            self._validate_sample(value)
        return value * self.log_rate - self.rate - torch.lgamma(value + 1)
