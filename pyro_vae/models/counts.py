"""Distributions of counts that are told a log rate, log mean or log odds, and stay exact for large counts.

The log of a million factorial is 12,815,518, which float32 knows to ± 0.5 nats. Here no such number is ever
formed: a density is its value where the mean is the count itself, which is of the order of log x, less
deviances x φ(d), φ(d) = eᵈ − 1 − d, which are small where the model fits.

References
----------
Loader (2000), Fast and Accurate Computation of Binomial Probabilities.
"""

import math
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

LARGE = 16.0
"""From here on Stirling's series is exact to 10⁻¹³, and log Γ itself is known to 10⁻⁶ in float32."""

MOST_BY_FACTORIALS = 255
"""The totals up to which a binomial coefficient is 10⁻⁴ exact in float32 by the logs of factorials, which
cost less."""

Size = TypeVar("Size", float, Tensor)


class LogRatePoisson(dist.Poisson):
    r"""A Poisson told log λ.

    .. math:: \log p(x) = x \log\lambda - \lambda - \log x! = \log p(x \mid \lambda = x)
              - x\, \varphi(\log\lambda - \log x)

    Examples
    --------
    >>> LogRatePoisson(torch.tensor(-200.0)).log_prob(torch.tensor(1.0))
    tensor(-200.)
    >>> LogRatePoisson(torch.tensor(1e6).log()).log_prob(torch.tensor(1e6))
    tensor(-7.8267)
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
        x, is_zero = _not_zero(value)
        by_deviance = -_own_surprise(x) - _deviance(x, self.log_rate - x.log())
        return torch.where(is_zero, -self.rate, by_deviance)


class LogMeanNegativeBinomial(dist.NegativeBinomial):  # type: ignore[misc]
    r"""A negative binomial told its log mean and the log of its inverse dispersion r.

    .. math:: \log p(x) = \log\frac{\Gamma(r + x)}{\Gamma(r)\, x!}
              - r\, \mathrm{softplus}(\log\mu - \log r) - x\, \mathrm{softplus}(\log r - \log\mu)

    Exact also where r is large, as for data that are nearly Poisson, and where counts are.

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
        x, is_zero = _not_zero(value)
        r, log_x = self.log_r.exp(), x.log()
        above = _softplus(self.log_mean - self.log_r)
        # log (r + x) / (r + μ), and the log of the expected over the true share of x in r + x
        of_r = _softplus(log_x - self.log_r) - above
        of_x = of_r + (self.log_mean - log_x)
        by_deviance = (
            _surprise_of_r(r, self.log_r, r + x)
            - _own_surprise(x)
            - _deviance_of_r(r, self.log_r, of_r)
            - _deviance(x, of_x)
        )
        return torch.where(is_zero, -r * above, by_deviance)


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
        n, logits = self._n, self.logits
        if n > MOST_BY_FACTORIALS:
            return self._by_deviance(value)
        log_coefficient = math.lgamma(n + 1) - torch.lgamma(value + 1) - torch.lgamma(n - value + 1)
        return log_coefficient + value * logits - n * _softplus(logits)

    def _by_deviance(self, value: Tensor) -> Tensor:
        n, logits = self._n, self.logits
        x, no_success = _not_zero(value)
        y, no_failure = _not_zero(n - value)
        log_no, log_yes = -_softplus(logits), -_softplus(-logits)
        own_surprise_of_n = 0.5 * math.log(n) + HALF_LOG_TWO_PI + _stirling_correction(float(n))
        inside = (
            own_surprise_of_n
            - _own_surprise(x)
            - _own_surprise(y)
            - _deviance(x, log_yes + math.log(n) - x.log())
            - _deviance(y, log_no + math.log(n) - y.log())
        )
        return torch.where(no_success, n * log_no, torch.where(no_failure, n * log_yes, inside))


def _not_zero(x: Tensor) -> tuple[Tensor, Tensor]:
    """Counts with 1 for 0, whose log would make gradients NaN, and where they are 0."""
    is_zero = x == 0
    return torch.where(is_zero, 1.0, x), is_zero


def _softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ). It is linear above its threshold; at 40 that is exact in float64, at torch's own 20 it is
    not."""
    return functional.softplus(x, threshold=40)


def _deviance(x: Tensor, d: Tensor) -> Tensor:
    """x φ(d) = x (eᵈ − 1 − d)."""
    return x * (d.expm1() - d)


def _deviance_of_r(r: Tensor, log_r: Tensor, d: Tensor) -> Tensor:
    """r φ(d), also where r underflows and eᵈ overflows."""
    is_large = d > 1
    near = _deviance(r, torch.where(is_large, 0.0, d))
    far = torch.where(is_large, log_r + d, 0.0).exp() - r * (1 + d)
    return torch.where(is_large, far, near)


def _own_surprise(x: Tensor) -> Tensor:
    """−log p(x) of a Poisson whose mean is x itself, log x! − x log x + x, for x ≥ 1."""
    is_large, small, large = _by_size(x)
    by_stirling = 0.5 * large.log() + (HALF_LOG_TWO_PI + _stirling_correction(large))
    return torch.where(is_large, by_stirling, torch.lgamma(small + 1) - small * small.log() + small)


def _surprise_of_r(r: Tensor, log_r: Tensor, n: Tensor) -> Tensor:
    """log Γ(n) − log Γ(r) − n (log n − 1) + r (log r − 1) for n ≥ 1 and any r > 0, also one that
    underflows."""
    is_large, small, large = _by_size(r)
    of_r = torch.where(
        is_large,
        0.5 * log_r - _stirling_correction(large),
        (1 + small) * log_r - torch.lgamma(small + 1) - small + HALF_LOG_TWO_PI,
    )
    return of_r - n.log() + (_own_surprise(n) - HALF_LOG_TWO_PI)


def _by_size(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where x is large, x where it is not, and x where it is; each with a harmless number elsewhere."""
    is_large = x > LARGE
    return is_large, torch.where(is_large, 1.0, x), torch.where(is_large, x, LARGE)


def _stirling_correction(y: Size) -> Size:
    """log Γ(y) − ((y − ½) log y − y + ½ log 2π)."""
    w = 1 / y
    z = w * w
    return w * (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z / 1188))))
