"""The map under which the KL to a standard Normal is exactly quadratic in raw."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from pyro_vae.guides.scales.base import ScaleMap

# Up to this |raw| a series is used: there the equation loses its digits to cancellation.
_NEAR = 0.125


def _series(order: int) -> list[float]:
    """Coefficients of u = w - w²/6 + w³/36 - …, the solution of exp(u) - 1 - u = w²/2.

    The equation differentiates to (u + w²/2) u' = w, which determines them one after the other.
    """
    c = [Fraction(0), Fraction(1)]
    for k in range(2, order + 1):
        v = [ci + (Fraction(1, 2) if i == 2 else 0) for i, ci in enumerate(c)]
        known = sum((v[i] * (k + 1 - i) * c[k + 1 - i] for i in range(2, k)), Fraction(0))
        c.append(-(known + (Fraction(1, 2) if k == 2 else 0)) / (k + 1))
    return [float(ck) for ck in c]


_COEFFICIENTS = _series(14)


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _newton(u: Tensor, raw: Tensor) -> Tensor:
    e = u.expm1()
    return u - (e - u - raw * raw) / e


class StdPlus(ScaleMap):
    r"""σ solves :math:`\sigma^2 - 2\log\sigma - 1 = \text{raw}^2` with sign(log σ) = sign(raw).

    So KL(N(0, σ²) ‖ N(0, 1)) = raw²/2: its gradient is raw itself and its curvature 1 everywhere. σ(0) = 1,
    d log σ/draw(0) = 1/√2; σ falls like exp(-(1 + raw²)/2) to the left and grows like raw to the right.
    In closed form σ² = -W(-exp(-1 - raw²)) with both real branches of the Lambert W function. (The map of the
    "Slashed Normal", 2024, withdrawn submission to ICLR 2025.)

    Examples
    --------
    >>> import torch
    >>> raw = torch.tensor([-2.0, 0.0, 2.0])
    >>> scale = StdPlus()(raw)
    >>> scale
    tensor([0.0824, 1.0000, 2.6338])
    >>> 0.5 * (scale**2 - 2 * scale.log() - 1)
    tensor([2., 0., 2.])
    """

    formula = "f with f² - 2 log f - 1 = raw²"
    remark = "KL exactly raw²/2; σ(0) = 1"

    def _log_scale(self, raw: Tensor) -> Tensor:
        near = raw.abs() < _NEAR
        u_near = _polynomial(_COEFFICIENTS, math.sqrt(2) * raw.clamp(-_NEAR, _NEAR))
        far = torch.where(near, _NEAR, raw)
        # Where Newton's method arrives does not depend on where it set out, so derivatives need only its last
        # steps: one for the first derivative, two for the second and third.
        fixed = far.detach()
        u = _start(fixed)
        for _ in range(2):
            u = _newton(u, fixed)
        for _ in range(2):
            u = _newton(u, far)
        return 0.5 * torch.where(near, u_near, u)

    def _slope(self, raw: Tensor) -> Tensor:
        near = raw.abs() < _NEAR
        derivative = [k * c for k, c in enumerate(_COEFFICIENTS)][1:]
        slope_near = _polynomial(derivative, math.sqrt(2) * raw.clamp(-_NEAR, _NEAR)) / math.sqrt(2)
        far = torch.where(near, _NEAR, raw)
        return torch.where(near, slope_near, far / (2 * self._log_scale(far)).expm1())

    def _raw(self, scale: Tensor) -> Tensor:
        u = 2 * scale.log()
        near = u.abs() < 0.5
        v = u.clamp(-0.5, 0.5)
        # exp(v) - 1 - v = v²/2 · (1 + v/3 + v²/12 + …)
        ratio = _polynomial([2 / math.factorial(k + 2) for k in range(13)], v)
        raw_near = v * (0.5 * ratio).sqrt()
        far = torch.where(near, 2.0, scale)
        top = far.clamp_min(1.0)
        square = (far / top) ** 2 - (1 + 2 * far.log()) / top / top
        return torch.where(near, raw_near, torch.sign(far - 1) * top * square.sqrt())


def _start(raw: Tensor) -> Tensor:
    """u = 2 log σ to within 0.02, from the asymptotics of both branches of the Lambert W function."""
    w = math.sqrt(2) * raw
    square = raw * raw
    below = (-w.abs() - square / 3).exp() - 1 - square
    above = (1 + square + (w.abs() + 2 * square / 3).log1p()).log()
    return torch.where(raw < 0, below, above)
