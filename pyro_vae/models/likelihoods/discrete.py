"""Likelihoods of binary data, counts and categories."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional

from pyro_vae.arguments import positive_number
from pyro_vae.models.counts import LogitBinomial, LogMeanNegativeBinomial, LogRatePoisson
from pyro_vae.models.likelihoods.base import Likelihood
from pyro_vae.models.likelihoods.dispersion import (
    Dispersion,
    dispersion_parameter,
    require_dispersion,
    with_zero_dispersion,
)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Binary data; the decoder gives log odds.

    Examples
    --------
    >>> Bernoulli().distribution(torch.zeros(3)).log_prob(torch.tensor([0.0, 1.0, 1.0]))
    tensor(-2.0794)
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        binary: TorchDistribution = dist.Bernoulli(logits=logits)
        return binary

    @property
    def requirement(self) -> str:
        return (
            "A Bernoulli likelihood needs 0 or 1: binarize the data (pyro_vae.data.binarize, or "
            "DynamicBinarization for a new draw every epoch), or use ContinuousBernoulli for intensities and "
            "Binomial for counts."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return (x != 0) & (x != 1)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x).logit()


@dataclass(frozen=True)
class Binomial(Likelihood):
    """Counts out of a known total; the decoder gives log odds.

    Parameters
    ----------
    total_count
        The largest possible count, for example 16 for scikit-learn's digits or 255 for bytes.

    Examples
    --------
    >>> Binomial(16).distribution(torch.zeros(3)).mean
    tensor([8., 8., 8.])
    """

    total_count: int

    def __post_init__(self) -> None:
        if (
            isinstance(self.total_count, bool)
            or not isinstance(self.total_count, int)
            or self.total_count < 1
        ):
            raise ValueError(f"total_count is {self.total_count!r}; give Binomial an integer of 1 or more")

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        return LogitBinomial(self.total_count, logits)

    @property
    def requirement(self) -> str:
        return (
            f"A Binomial({self.total_count}) likelihood needs integers in 0…{self.total_count}: give the "
            "right total_count, or use Poisson for counts without a bound and Normal for reals."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x) | (x > self.total_count)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x, self.total_count).logit()


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts without a bound; the decoder gives log rates.

    Examples
    --------
    >>> Poisson().distribution(torch.zeros(2)).mean
    tensor([1., 1.])
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (log_rate,) = parameters
        return LogRatePoisson(log_rate)

    @property
    def requirement(self) -> str:
        return "A Poisson likelihood needs non-negative integers: use Normal or StudentT for reals."

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x).log()


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts that vary more than a Poisson; the decoder gives the log mean.

    The variance is μ + μ²/r. The inverse dispersion r is ``exp`` of a parameter that is shared by all
    features, one per feature, or predicted by the decoder; r → ∞ is the Poisson.

    Parameters
    ----------
    dispersion
        "shared", "feature" or "predicted".
    init_inverse_dispersion
        r at the start.

    Examples
    --------
    >>> counts = NegativeBinomial().distribution(torch.zeros(2), torch.tensor(0.0))
    >>> counts.mean, counts.variance
    (tensor([1., 1.]), tensor([2., 2.]))
    """

    dispersion: Dispersion = "feature"
    init_inverse_dispersion: float = 1.0

    def __post_init__(self) -> None:
        require_dispersion(self.dispersion)
        positive_number("init_inverse_dispersion", self.init_inverse_dispersion)

    @property
    def outputs(self) -> int:
        return 2 if self.dispersion == "predicted" else 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:
        # zero: `family` adds log init_inverse_dispersion, to this parameter and to predictions alike
        return dispersion_parameter(self.dispersion, event_shape)

    def family(self, *parameters: Tensor) -> TorchDistribution:
        log_mean, raw = parameters
        log_r = raw + math.log(self.init_inverse_dispersion)
        return LogMeanNegativeBinomial(log_mean, log_r)

    @property
    def requirement(self) -> str:
        return "A NegativeBinomial likelihood needs non-negative integers: use Normal or StudentT for reals."

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x)

    def marginal_output(self, x: Tensor) -> Tensor:
        return with_zero_dispersion(_smoothed_mean(x).log(), self.outputs)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One of k categories per feature, coded 0…k−1; the decoder gives k logits per feature.

    Examples
    --------
    >>> Categorical(4).distribution(torch.zeros(2 * 4)).log_prob(torch.tensor([0, 3])).exp()
    tensor(0.0625)
    """

    categories: int

    def __post_init__(self) -> None:
        if isinstance(self.categories, bool) or not isinstance(self.categories, int) or self.categories < 2:
            raise ValueError(f"categories is {self.categories!r}; give Categorical an integer of 2 or more")

    @property
    def outputs(self) -> int:
        return self.categories

    def family(self, *parameters: Tensor) -> TorchDistribution:
        codes: TorchDistribution = dist.Categorical(logits=torch.stack(parameters, dim=-1))
        return codes

    @property
    def requirement(self) -> str:
        return (
            f"A Categorical({self.categories}) likelihood needs integers in 0…{self.categories - 1}: "
            "recode the categories, or give their number as categories."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x) | (x >= self.categories)

    def marginal_output(self, x: Tensor) -> Tensor:
        counts = functional.one_hot(x.long(), self.categories).sum(0)
        logits = ((counts + 0.5) / (len(x) + 0.5 * self.categories)).log().to(x.dtype)
        return logits.movedim(-1, 0).flatten(0, 1)


def _not_counts(x: Tensor) -> Tensor:
    """Where ``x`` is not a finite non-negative integer."""
    return ~x.isfinite() | (x < 0) | (x != x.round())


def _smoothed_mean(x: Tensor, total: int = 1) -> Tensor:
    """The mean over rows as a share of ``total``, kept off 0 and 1 by half a count on either side."""
    return (x.sum(0) + 0.5) / (len(x) * total + 1)
