"""Distributions that are told the log of their scale, rate or odds, and whose density uses it directly.

A decoder knows log σ (or log λ) before it knows σ. A density that is only given σ has to take log(exp(·)),
which is −inf, with a NaN gradient, as soon as σ underflows. The classes here keep the log. They serve p(x|z)
and p(z₁|z₂) and know nothing of the guides, whose own Normal also has to score its own draws.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn import functional


class LocationScale(TorchDistribution):
    r"""``loc + exp(log_scale) * e``, where ``e`` follows a standard distribution over the reals.

    .. math:: \log p(x) = \log p_e\big((x - \mu)\, e^{-\log\sigma}\big) - \log\sigma

    Parameters
    ----------
    standard
        The distribution of ``e``, of batch shape ``()``.
    loc, log_scale
        Location and log scale; their shapes broadcast to the batch shape.

    Examples
    --------
    The square of exp(-80) is 0 in float32, and a Normal told the scale divides by it:

    >>> x, log_scale = torch.tensor(3.0), torch.tensor(-80.0)
    >>> dist.Normal(x, log_scale.exp()).log_prob(x)
    tensor(nan)
    >>> LocationScale(dist.Normal(torch.tensor(0.0), torch.tensor(1.0)), x, log_scale).log_prob(x)
    tensor(79.0811)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "log_scale": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(
        self, standard: TorchDistribution, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.standard = standard
        self.loc = loc
        self.log_scale = log_scale
        batch_shape = torch.broadcast_shapes(loc.shape, log_scale.shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:
        """The scale, exp(log_scale)."""
        return self.log_scale.exp()

    @property
    def mean(self) -> Tensor:
        """The mean, ``loc + scale * E[e]``."""
        return self.loc + self.scale * self.standard.mean

    @property
    def variance(self) -> Tensor:
        """The variance, ``scale² * Var[e]``."""
        return (self.scale.square() * self.standard.variance).expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LocationScale":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        expanded = LocationScale(
            self.standard, self.loc.expand(shape), self.log_scale.expand(shape), validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws of shape ``sample_shape + batch_shape``, differentiable in ``loc`` and ``log_scale``."""
        noise: Tensor = self.standard.expand(self.batch_shape).rsample(sample_shape)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_density: Tensor = self.standard.log_prob(_divided_by_scale(value - self.loc, self.log_scale))
        return log_density - self.log_scale


def _divided_by_scale(difference: Tensor, log_scale: Tensor) -> Tensor:
    """difference/σ without 1/σ, which overflows long before the quotient does (and 0 · inf is NaN)."""
    most = math.log(torch.finfo(log_scale.dtype).max) - 1
    root = (-0.5 * log_scale).clamp_max(most).exp()
    return (difference * root) * root


def _kl_normal_location_scale(p: dist.Normal, q: LocationScale) -> Tensor:
    """KL(p‖q), so that the prior p(z₁|z₂) of a hierarchy keeps its analytic term."""
    if not isinstance(q.standard, dist.Normal):
        raise NotImplementedError("KL to a LocationScale is known for a standard Normal only")
    ratio, shift = (_divided_by_scale(part, q.log_scale) for part in (p.scale, p.loc - q.loc))
    excess = (ratio.square() + shift.square()) / 2
    divergence: Tensor = excess + q.log_scale + 0.5 * math.log(2 * math.pi) - p.entropy()
    return divergence


register_kl(dist.Normal, LocationScale)(_kl_normal_location_scale)


class LogRatePoisson(dist.Poisson):
    r"""A Poisson told log λ: :math:`\log p(x) = x \log\lambda - e^{\log\lambda} - \log x!`.

    Examples
    --------
    >>> LogRatePoisson(torch.tensor(-200.0)).log_prob(torch.tensor(1.0))
    tensor(-200.)
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogRatePoisson":
        """The same distribution with a larger batch shape."""
        expanded = LogRatePoisson(self.log_rate.expand(torch.Size(batch_shape)), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return value * self.log_rate - self.rate - torch.lgamma(value + 1)


class LogMeanNegativeBinomial(dist.NegativeBinomial):  # type: ignore[misc]
    r"""A negative binomial told its log mean and the log of its inverse dispersion r.

    .. math:: \log p(x) = \log\frac{\Gamma(r + x)}{\Gamma(r)\, x!}
              - r\, \mathrm{softplus}(\log\mu - \log r) - x\, \mathrm{softplus}(\log r - \log\mu)

    Data that are nearly Poisson drive r up, and there the difference of two log Γ drowns in rounding: at
    r = 10⁶ each is 10⁷, and float32 knows it to ± 1 nat. For r above 100 their Stirling series are subtracted
    instead.

    Examples
    --------
    >>> counts, log_mean = torch.tensor(3.0), torch.tensor(1.0)
    >>> LogMeanNegativeBinomial(log_mean, torch.tensor(20.0)).log_prob(counts)
    tensor(-1.5100)
    >>> LogRatePoisson(log_mean).log_prob(counts)
    tensor(-1.5100)
    """

    def __init__(self, log_mean: Tensor, log_r: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        # at e⁴⁰ it is a Poisson to the last bit, and r cannot overflow on its way to infinity
        self.log_r = log_r.clamp(max=40)
        super().__init__(self.log_r.exp(), logits=log_mean - self.log_r, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogMeanNegativeBinomial":
        """The same distribution with a larger batch shape."""
        shape = torch.Size(batch_shape)
        expanded = LogMeanNegativeBinomial(
            self.log_mean.expand(shape), self.log_r.expand(shape), validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        r, log_odds = self.log_r.exp(), self.log_mean - self.log_r
        return (
            _log_rising_factorial(r, value)
            - torch.lgamma(value + 1)
            - r * functional.softplus(log_odds, threshold=40)
            - value * functional.softplus(-log_odds, threshold=40)
        )


def _log_rising_factorial(r: Tensor, x: Tensor) -> Tensor:
    """log Γ(r + x) − log Γ(r), accurate for every r > 0."""
    is_large = r > 100
    small = torch.where(is_large, 1.0, r)
    large = torch.where(is_large, r, 100.0)
    difference = torch.lgamma(small + x) - torch.lgamma(small)
    by_stirling = (
        (large - 0.5) * torch.log1p(x / large)
        + x * (torch.log(large + x) - 1)
        + _stirling_correction(large + x)
        - _stirling_correction(large)
    )
    return torch.where(is_large, by_stirling, difference)


def _stirling_correction(y: Tensor) -> Tensor:
    """log Γ(y) − ((y − ½) log y − y + ½ log 2π), to 10⁻¹³ for y above 100."""
    return (1 - 1 / (30 * y.square())) / (12 * y)


class LogitBinomial(dist.Binomial):
    r"""A Binomial with one known total n, told the log odds l.

    .. math:: \log p(x) = \log\tbinom{n}{x} + x\,l - n\,\mathrm{softplus}(l)

    Torch's own Binomial takes log n! elementwise over the shape of the logits, which here are
    draws × observations × features; this one takes the binomial coefficient over the data's shape only.

    Examples
    --------
    >>> LogitBinomial(2, torch.tensor(0.0)).log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
    tensor([0.2500, 0.5000, 0.2500])
    """

    def __init__(self, total_count: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self._n = total_count
        super().__init__(total_count, logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogitBinomial":
        """The same distribution with a larger batch shape."""
        expanded = LogitBinomial(self._n, self.logits.expand(torch.Size(batch_shape)), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_coefficient = (
            math.lgamma(self._n + 1) - torch.lgamma(value + 1) - torch.lgamma(self._n - value + 1)
        )
        # softplus is linear above its threshold; at 40 that is exact in float64, at the default 20 it is not
        return (
            log_coefficient + value * self.logits - self._n * functional.softplus(self.logits, threshold=40)
        )
