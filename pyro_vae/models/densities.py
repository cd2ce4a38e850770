"""A location and scale family that is told the log of its scale, and whose density uses it directly.

A decoder knows log σ before it knows σ. A density that is only given σ has to take log(exp(·)), which is
−inf, with a NaN gradient, as soon as σ underflows. The class here keeps the log. It serves p(x|z) and
p(z₁|z₂) and knows nothing of the guides, whose own Normal also has to score its own draws.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl


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
