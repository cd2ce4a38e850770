"""Likelihoods of intensities and of real data."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import positive_number
from pyro_vae.models.densities import LocationScale
from pyro_vae.models.likelihoods.base import Likelihood
from pyro_vae.models.likelihoods.dispersion import (
    Dispersion,
    dispersion_parameter,
    require_dispersion,
    with_zero_dispersion,
)
from pyro_vae.models.scale_map import LogScale, ScaleMap


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Intensities in [0, 1]; the decoder gives logits.

    Unlike a Bernoulli evaluated at grey values, this is a normalized density.
    Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli.

    Examples
    --------
    >>> ContinuousBernoulli().distribution(torch.zeros(2)).log_prob(torch.tensor([0.2, 0.9]))
    tensor(0.)
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        intensities: TorchDistribution = dist.ContinuousBernoulli(logits=logits)
        return intensities

    @property
    def requirement(self) -> str:
        return (
            "A ContinuousBernoulli likelihood needs values in [0, 1]: divide by the largest possible value."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x <= 1))

    def marginal_output(self, x: Tensor) -> Tensor:
        # not the exact inverse of the mean, which has no closed form, but on the same side of ½
        return x.mean(0).clamp(0.01, 0.99).logit()


@dataclass(frozen=True)
class _LocationScale(Likelihood):
    """Reals around a location, with a scale that is fixed or learned through a scale map."""

    scale: float | ScaleMap = field(default_factory=LogScale)
    dispersion: Dispersion = "shared"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        require_dispersion(self.dispersion)
        positive_number("init_scale", self.init_scale)
        if isinstance(self.scale, (int, float)):
            positive_number("scale", self.scale)
        elif not isinstance(self.scale, ScaleMap):
            raise TypeError(
                f"scale is {self.scale!r}, which is neither a number nor a scale map; "
                'give pyro_vae.scales.get("softplus"), for example.'
            )

    @cached_property
    def _init_raw(self) -> float:
        """Where the map gives init_scale: learned parameters and predictions are counted from there."""
        assert not isinstance(self.scale, (int, float))
        return float(self.scale.inv(torch.tensor(self.init_scale, dtype=torch.float64)))

    @property
    def outputs(self) -> int:
        fixed = isinstance(self.scale, (int, float))
        return 2 if self.dispersion == "predicted" and not fixed else 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:
        fixed = isinstance(self.scale, (int, float))
        return None if fixed else dispersion_parameter(self.dispersion, event_shape)

    def family(self, *parameters: Tensor) -> TorchDistribution:
        if isinstance(self.scale, (int, float)):
            (loc,) = parameters
            log_scale = loc.new_full((), math.log(self.scale))
        else:
            loc, raw = parameters
            log_scale = self.scale.log_scale(raw + self._init_raw)
        return LocationScale(self._standard(loc), loc, log_scale)

    @abstractmethod
    def _standard(self, like: Tensor) -> TorchDistribution:
        """The distribution at location 0 and scale 1, in the dtype and on the device of ``like``."""

    @property
    def requirement(self) -> str:
        return f"A {type(self).__name__} likelihood needs finite values: drop such rows or impute the values."

    def invalid(self, x: Tensor) -> Tensor:
        return ~x.isfinite()

    def marginal_output(self, x: Tensor) -> Tensor:
        return with_zero_dispersion(x.mean(0), self.outputs)


@dataclass(frozen=True)
class Normal(_LocationScale):
    r"""Real data; the decoder gives the location.

    .. math:: \log p(x) = -\tfrac12 \big((x - \mu) e^{-\log\sigma}\big)^2 - \log\sigma - \tfrac12\log 2\pi

    Parameters
    ----------
    scale
        σ itself, a number, or a scale map (``pyro_vae.scales.get("softplus")``) through which σ is learned;
        the default learns log σ.
    dispersion
        Of a learned σ: "shared" by all features, one per "feature", or "predicted" by the decoder, which then
        gives two outputs per feature.
    init_scale
        σ at the start, the same under every map.

    Examples
    --------
    >>> Normal(scale=2.0).distribution(torch.zeros(3)).stddev
    tensor([2., 2., 2.])
    >>> Normal(dispersion="predicted").outputs
    2
    """

    def _standard(self, like: Tensor) -> TorchDistribution:
        standard: TorchDistribution = dist.Normal(like.new_zeros(()), like.new_ones(()))
        return standard


@dataclass(frozen=True)
class StudentT(_LocationScale):
    """Real data with outliers: as `Normal`, with ``df`` degrees of freedom.

    Examples
    --------
    >>> StudentT(scale=1.0, df=1.0).distribution(torch.zeros(1)).log_prob(torch.tensor([1.0])).exp()
    tensor(0.1592)
    """

    df: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_number("df", self.df)

    def _standard(self, like: Tensor) -> TorchDistribution:
        zero = like.new_zeros(())
        standard: TorchDistribution = dist.StudentT(zero + self.df, zero, zero + 1)
        return standard
