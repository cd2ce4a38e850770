"""A Normal that is told log σ and never needs σ."""

import math
from typing import Any, NamedTuple, Self

import pyro.distributions
import torch
from torch import Size, Tensor
from torch.distributions import Normal, constraints, register_kl
from torch.distributions.utils import broadcast_all
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.guides.precision import at_least_float32

__all__ = ["LogScaleNormal"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _Noise(NamedTuple):
    """The noise of a draw, and what must not have changed since for it to be that draw's noise."""

    eps: Tensor
    versions: tuple[int, ...]
    pathwise: bool


class LogScaleNormal(pyro.distributions.Normal):
    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012

    def __init__(
        self, loc: Tensor | float, log_scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        loc, log_scale = broadcast_all(loc, log_scale)
        dtype = torch.promote_types(loc.dtype, log_scale.dtype)
        self.loc, self.log_scale = loc.to(dtype), log_scale.to(dtype)
        self._noise = WeakTensorKeyDictionary()
        # Normal's own constructor would want a scale.
        super(Normal, self).__init__(self.loc.shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:
        """σ = exp(log_scale)."""
        return self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        """σ² = exp(2 log_scale)."""
        return (2 * self.log_scale).exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        new = self._get_checked_instance(LogScaleNormal, _instance)
        batch_shape = Size(batch_shape)
        new.loc = self.loc.expand(batch_shape)
        new.log_scale = self.log_scale.expand(batch_shape)
        new._noise = self._noise
        super(Normal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        loc, log_scale = at_least_float32(self.loc), at_least_float32(self.log_scale)
        eps = torch.randn(shape, dtype=loc.dtype, device=loc.device)
        draw = (loc + eps * log_scale.exp()).to(self.loc.dtype)
        versions = self._versions(draw)
        if versions is not None:
            self._noise[draw] = _Noise(eps, versions, draw.requires_grad)
        return draw

    def _versions(self, draw: Tensor) -> tuple[int, ...] | None:
        tensors = (draw, self.loc, self.log_scale)
        return None if any(t.is_inference() for t in tensors) else tuple(t._version for t in tensors)

    def _standardized(self, value: Tensor) -> Tensor:
        """(value - loc)/σ."""
        half = (-0.5 * at_least_float32(self.log_scale)).clamp_max(88.0)
        root = half.exp()
        return (at_least_float32(value) - at_least_float32(self.loc)) * root * root

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_scale = at_least_float32(self.log_scale)
        noise = self._noise.get(value)
        if noise is not None and noise.versions == self._versions(value):
            if noise.pathwise and value.requires_grad:
                return -0.5 * noise.eps.square() - log_scale - _HALF_LOG_2PI
        return -0.5 * self._standardized(value).square() - log_scale - _HALF_LOG_2PI

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.special.ndtr(self._standardized(value))

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + self.scale * torch.special.ndtri(at_least_float32(value))

    def entropy(self) -> Tensor:
        return 0.5 + _HALF_LOG_2PI + at_least_float32(self.log_scale)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_noise"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _noise=WeakTensorKeyDictionary())


def _log_scale_of(normal: Normal) -> Tensor:
    log_scale = normal.log_scale if isinstance(normal, LogScaleNormal) else normal.scale.log()
    return at_least_float32(log_scale)


@register_kl(LogScaleNormal, LogScaleNormal)
@register_kl(LogScaleNormal, Normal)
@register_kl(Normal, LogScaleNormal)
def _kl(q: Normal, p: Normal) -> Tensor:
    log_q, log_p = _log_scale_of(q), _log_scale_of(p)
    twice = 2 * (log_q - log_p)
    root = (-0.5 * log_p).clamp_max(88.0).exp()
    shift = (at_least_float32(q.loc) - at_least_float32(p.loc)) * root * root
    return 0.5 * (twice.expm1() - twice + shift.square())
