"""A Normal that is told log σ and never needs σ."""

import math
from numbers import Number
from typing import Any, Self

import pyro.distributions
import torch
from torch import Size, Tensor
from torch.distributions import Normal, constraints, register_kl
from torch.distributions.utils import broadcast_all

from pyro_vae.arguments import kind
from pyro_vae.guides.noise import NoiseMemory
from pyro_vae.guides.precision import at_least_float32

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class LogScaleNormal(pyro.distributions.Normal):
    r"""The Normal :math:`N(\mu, \sigma^2)` with parameters :math:`\mu` and :math:`\log\sigma`.

    A drop-in for :class:`pyro.distributions.Normal`, of which it is a subclass, where σ comes from a network:
    log σ is what the network's scale map knows (:meth:`pyro_vae.guides.scales.ScaleMap.log_scale`) and what
    the density needs. σ² and log(exp(·)) are never formed. The log density, its gradient and the KL are
    right for σ from 1e-30 to 1e30 in float32 wherever the true value can be represented, and never NaN for
    finite arguments; :class:`torch.distributions.Normal` loses its gradient below σ = 1e-20.

    **Its own draws.** A draw's noise ε is remembered while the draw lives, so that ``log_prob(draw)`` is
    :math:`-\varepsilon^2/2 - \log\sigma - \log\sqrt{2\pi}` and not a difference of nearly equal numbers: at
    σ/\|μ\| = 1e-8 in float32 the density computed back from the draw is off by half a nat. What counts is the
    tensor itself, unchanged, and the distribution object that drew it: a slice, a reshape, a detached copy or
    a draw changed in place is scored from its value, like any other tensor.

    **Gradients.** The log density of a reparameterized draw depends on the parameters directly and through
    the draw; the sum of both is what autograd gives, exactly: 0 for the location, -1 for log σ. The path
    through the draw alone is therefore not visible. Where that is wanted (∂ log q/∂z), score
    ``draw.clone()``; for the path derivative (Roeder, Wu and Duvenaud, 2017, Sticking the landing) score the
    draw under a distribution with detached parameters. A draw without gradient, as :meth:`sample` gives, has
    the score as its gradient, as under any distribution.

    **Precision.** float16 and bfloat16 parameters give draws of that dtype, while noise, densities, entropy
    and KL are computed, and densities returned, in float32. Two dtypes are promoted to one.

    Parameters
    ----------
    loc : Tensor or float
        The mean μ.
    log_scale : Tensor or float
        log σ, the log of the standard deviation; broadcasts with ``loc``.
    validate_args : bool, optional
        Whether to check arguments and values; torch's and Pyro's default if not given.

    Raises
    ------
    TypeError
        If one is neither a tensor nor a number.
    ValueError
        If they do not broadcast, or, if validation is on, one is NaN.

    See Also
    --------
    pyro_vae.guides.scales : where log σ comes from.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal, kl_divergence
    >>> q = LogScaleNormal(torch.tensor([1.0, 1.0]), torch.tensor([0.0, -60.0]))
    >>> q.scale
    tensor([1.0000e+00, 8.7565e-27])
    >>> q.log_prob(q.rsample())
    tensor([-2.1063, 59.0380])
    >>> kl_divergence(q, Normal(0.0, 1.0))
    tensor([ 0.5000, 60.0000])
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012
    loc: Tensor
    log_scale: Tensor

    def __init__(
        self, loc: Tensor | float, log_scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        for name, value in (("loc", loc), ("log_scale", log_scale)):
            if not isinstance(value, Tensor | Number):
                raise TypeError(f"{name} is {kind(value)}; give a tensor or a number")
        try:
            loc, log_scale = broadcast_all(loc, log_scale)
        except RuntimeError as error:
            raise ValueError(
                f"log_scale has shape {tuple(torch.as_tensor(log_scale).shape)} and loc has "
                f"{tuple(torch.as_tensor(loc).shape)}; give shapes that broadcast"
            ) from error
        dtype = torch.promote_types(loc.dtype, log_scale.dtype)
        self.loc, self.log_scale = loc.to(dtype), log_scale.to(dtype)
        self._noise = NoiseMemory()
        # Past Normal's own constructor, which wants a scale.
        super(Normal, self).__init__(self.loc.shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """σ = exp(log_scale), 0 or inf where it leaves the range of the dtype."""
        return self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        """σ² = exp(2 log_scale)."""
        return (2 * self.log_scale).exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution with its batch dimensions expanded, and no draws yet."""
        new: Self = self._get_checked_instance(LogScaleNormal, _instance)  # type: ignore[no-untyped-call]
        batch_shape = Size(batch_shape)
        new.loc = self.loc.expand(batch_shape)
        new.log_scale = self.log_scale.expand(batch_shape)
        new._noise = NoiseMemory()
        super(Normal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A draw without gradient, of shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A reparameterized draw μ + σ ε, of shape ``sample_shape + batch_shape``."""
        loc = at_least_float32(self.loc)
        # randn rather than normal_: in vmap it draws for every example, in a captured graph it is one node.
        eps = torch.randn(self._extended_shape(Size(sample_shape)), dtype=loc.dtype, device=loc.device)
        draw = (loc + eps * at_least_float32(self.log_scale).exp()).to(self.loc.dtype)
        self._noise.remember(draw, eps, (self.loc, self.log_scale))
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, of the shape of ``value`` broadcast with ``batch_shape``."""
        if self._validate_args:
            self._validate_sample(value)
        return -0.5 * self._standardized(value).square() - at_least_float32(self.log_scale) - _HALF_LOG_2PI

    def cdf(self, value: Tensor) -> Tensor:
        """P(z ≤ value), to relative precision in the lower tail."""
        if self._validate_args:
            self._validate_sample(value)
        return 0.5 * torch.erfc(-math.sqrt(0.5) * self._standardized(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of a probability, to relative precision in the lower tail."""
        quantile: Tensor = torch.special.ndtri(at_least_float32(value))
        return self.loc + self.scale * quantile

    def entropy(self) -> Tensor:
        """1/2 + log √(2π) + log σ, in nats."""
        return 0.5 + _HALF_LOG_2PI + at_least_float32(self.log_scale)

    def _standardized(self, value: Tensor) -> Tensor:
        """(value - μ)/σ, with the gradients that the docstring of the class promises."""
        loc, log_scale = at_least_float32(self.loc), at_least_float32(self.log_scale)
        noise = self._noise.recall(value, (self.loc, self.log_scale))
        if noise is None:
            return _divided_by_scale(at_least_float32(value) - loc, log_scale)
        if (noise.pathwise and not value.is_leaf) or not torch.is_grad_enabled():
            return noise.eps
        # ε itself, with the partial derivatives of (value - μ)/σ: the factor is 1 and the other term 0,
        # nan_to_num because inf - inf is not, where σ and with it the draw are infinite.
        still = at_least_float32(value - value.detach()).nan_to_num() - (loc - loc.detach())
        return noise.eps * (log_scale.detach() - log_scale).exp() + _divided_by_scale(still, log_scale)


def _divided_by_scale(difference: Tensor, log_scale: Tensor) -> Tensor:
    """difference/σ without 1/σ, which overflows long before the quotient does (and 0 · inf is NaN)."""
    most = math.log(torch.finfo(log_scale.dtype).max) - 1
    root = (-0.5 * log_scale).clamp_max(most).exp()
    return (difference * root) * root


@register_kl(LogScaleNormal, LogScaleNormal)  # type: ignore[untyped-decorator]
@register_kl(LogScaleNormal, Normal)  # type: ignore[untyped-decorator]
@register_kl(Normal, LogScaleNormal)  # type: ignore[untyped-decorator]
def _kl_divergence(q: Normal, p: Normal) -> Tensor:
    """KL(q ‖ p) = (exp(2d) - 1 - 2d)/2 + ((μ_q - μ_p)/σ_p)²/2, with d = log σ_q - log σ_p."""
    log_scale_p = _log_scale(p)
    difference = at_least_float32(q.loc) - at_least_float32(p.loc)
    if isinstance(p, LogScaleNormal):
        shift = _divided_by_scale(difference, log_scale_p)
    else:
        shift = difference / p.scale
    twice = 2 * (_log_scale(q) - log_scale_p)
    return 0.5 * (twice.expm1() - twice + shift.square())


def _log_scale(normal: Normal) -> Tensor:
    if isinstance(normal, LogScaleNormal):
        return at_least_float32(normal.log_scale)
    return at_least_float32(normal.scale).log()
