"""σ between a low and a high bound that it never reaches."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_vae.arguments import positive_number
from pyro_vae.guides.scales.base import ScaleMap


def _low_and_high(low: float, high: float) -> tuple[float, float]:
    """Both as floats, if 0 < low < high < ∞."""
    low, high = (
        positive_number(name, end, no_number=TypeError) for name, end in (("low", low), ("high", high))
    )
    if not low < high:
        raise ValueError(f"low is {low:g}; give less than high, which is {high:g}")
    return low, high


class Bounded(ScaleMap):
    """σ = low + (high - low) · sigmoid(raw).

    Parameters
    ----------
    low, high : float
        The open interval of σ, 0 < low < high. With the defaults raw = 0 is σ = 1.0005, next to a standard
        Normal prior.

    Examples
    --------
    >>> import torch
    >>> Bounded(low=0.1, high=1.0)(torch.tensor([-100.0, 0.0, 100.0]))
    tensor([0.1000, 0.5500, 1.0000])
    """

    formula = "low + (high - low)·sigmoid(raw)"
    remark = "gradient dies exponentially at both ends"

    def __init__(self, low: float = 1e-3, high: float = 2.0) -> None:
        super().__init__()
        self.low, self.high = _low_and_high(low, high)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    def _log_scale(self, raw: Tensor) -> Tensor:
        # σ = low·sigmoid(-raw) + high·sigmoid(raw), term by term in logs: no digits are lost at either end.
        return torch.logaddexp(math.log(self.low) + logsigmoid(-raw), math.log(self.high) + logsigmoid(raw))

    def _slope(self, raw: Tensor) -> Tensor:
        return (self.high - self.low) * (-raw).sigmoid() / (self.high + (math.log(self.low) - raw).exp())

    def _log_abs_det_jacobian(self, raw: Tensor) -> Tensor:
        return math.log(self.high - self.low) + logsigmoid(raw) + logsigmoid(-raw)

    def _raw(self, scale: Tensor) -> Tensor:
        # A σ that rounded to a bound is taken as the nearest one inside, so that raw is finite.
        least = torch.finfo(scale.dtype).eps * scale
        return torch.maximum(scale - self.low, least).log() - torch.maximum(self.high - scale, least).log()


class SoftClip(ScaleMap):
    r"""log σ = raw, softly clipped into (log low, log high).

    With m the middle of the interval in logs, h half its width and a = raw - m,
    log σ = m + a / (1 + \|a\|/h). The slope is 1 in the middle and falls like 1/a², so it never dies. With
    the default bounds this is the scale of zuko's affine flows; NVAE (Vahdat and Kautz, 2020) uses tanh for
    the same purpose.

    Parameters
    ----------
    low, high : float
        The open interval of σ, 0 < low < high.

    Examples
    --------
    >>> import torch
    >>> SoftClip(low=1e-3, high=1e3)(torch.tensor([-100.0, 0.0, 100.0]))
    tensor([1.5626e-03, 1.0000e+00, 6.3997e+02])
    """

    formula = "exp(m + a/(1 + |a|/h)), a = raw - m; m, h: middle and half width of (log low, log high)"
    remark = "gradient falls like 1/raw², never dies"

    def __init__(self, low: float = 1e-3, high: float = 1e3) -> None:
        super().__init__()
        self.low, self.high = _low_and_high(low, high)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def _middle_and_half_width(self) -> tuple[float, float]:
        low, high = math.log(self.low), math.log(self.high)
        return (high + low) / 2, (high - low) / 2

    def _log_scale(self, raw: Tensor) -> Tensor:
        m, h = self._middle_and_half_width
        a = raw - m
        d = h + a.abs()
        # The same twice, but the derivative of the second form, h²/d², does not cancel where |a| is large.
        return m + torch.where(d < 2 * h, h * a / d, a.sign() * (h - h * h / d))

    def _slope(self, raw: Tensor) -> Tensor:
        m, h = self._middle_and_half_width
        return (h / (h + (raw - m).abs())) ** 2

    def _raw(self, scale: Tensor) -> Tensor:
        m, h = self._middle_and_half_width
        most = 1 - torch.finfo(scale.dtype).eps
        t = ((scale.log() - m) / h).clamp(-most, most)
        return m + h * t / (1 - t.abs())
