"""log σ and its slope under every map, to 60 digits, straight from the defining formulas."""

from collections.abc import Callable
from functools import cache

import mpmath
from mpmath import exp, log, log1p, mpf, sign

from pyro_vae.guides import scales
from pyro_vae.guides.scales import ScaleMap

mpmath.mp.dps = 60


def log_scale(scale_map: ScaleMap, raw: float) -> mpf:
    """log σ at a raw that is exact as a float."""
    return _FORMULAS[type(scale_map)](scale_map, mpf(raw))[0]


def slope(scale_map: ScaleMap, raw: float) -> mpf:
    """d log σ/d raw; at a kink, the derivative from the right."""
    return _FORMULAS[type(scale_map)](scale_map, mpf(raw))[1]


def _sigmoid(t: mpf) -> mpf:
    return 1 / (1 + exp(-t))


def _log_softplus(t: mpf) -> tuple[mpf, mpf]:
    softplus = log1p(exp(t)) if t < 0 else t + log1p(exp(-t))
    return log(softplus), _sigmoid(t) / softplus


def _softplus(m: scales.Softplus, raw: mpf) -> tuple[mpf, mpf]:
    value, derivative = _log_softplus(mpf(m.beta) * raw)
    return value - log(mpf(m.beta)), m.beta * derivative


def _softplus_var(m: scales.SoftplusVar, raw: mpf) -> tuple[mpf, mpf]:
    value, derivative = _log_softplus(raw)
    return value / 2, derivative / 2


def _explinear(m: scales.ExpLinear, raw: mpf) -> tuple[mpf, mpf]:
    return (raw / 2, mpf("0.5")) if raw < 0 else (log1p(raw) / 2, 1 / (1 + raw) / 2)


@cache
def _stdplus(m: scales.StdPlus, raw: mpf) -> tuple[mpf, mpf]:
    if raw == 0:
        return mpf(0), 1 / mpmath.sqrt(2)
    with mpmath.workdps(100):  # the branch point of Lambert's W at raw = 0 takes away half of the digits
        square = -mpmath.lambertw(-exp(-1 - raw**2), 0 if raw < 0 else -1)
        return log(square) / 2, raw / (square - 1)


def _bounded(m: scales.Bounded, raw: mpf) -> tuple[mpf, mpf]:
    low, high = mpf(m.low), mpf(m.high)
    p, q = _sigmoid(raw), _sigmoid(-raw)
    value = log(low) + log1p((high / low - 1) * p) if raw < 0 else log(high) + log1p((low / high - 1) * q)
    return value, (high - low) * p * q / (low * q + high * p)


def _softclip(m: scales.SoftClip, raw: mpf) -> tuple[mpf, mpf]:
    low, high = log(mpf(m.low)), log(mpf(m.high))
    middle, half_width = (low + high) / 2, (high - low) / 2
    a = raw - middle
    return middle + a / (1 + abs(a) / half_width), (half_width / (half_width + abs(a))) ** 2


def _clamp(m: scales.Clamp, raw: mpf) -> tuple[mpf, mpf]:
    return (log(raw), 1 / raw) if raw >= m.low else (log(mpf(m.low)), mpf(0))


def _abs(m: scales.Abs, raw: mpf) -> tuple[mpf, mpf]:
    return log(abs(raw) + mpf(m.low)), sign(raw) / (abs(raw) + mpf(m.low))


def _floor(m: scales.Floor, raw: mpf) -> tuple[mpf, mpf]:
    value, derivative = _FORMULAS[type(m.map)](m.map, raw)
    above = value - log(mpf(m.min_scale))
    return value + log1p(exp(-above)), derivative * _sigmoid(above)


_FORMULAS: dict[type[ScaleMap], Callable[..., tuple[mpf, mpf]]] = {
    scales.LogVar: lambda m, raw: (raw / 2, mpf("0.5")),
    scales.LogStd: lambda m, raw: (raw, mpf(1)),
    scales.Softplus: _softplus,
    scales.SoftplusVar: _softplus_var,
    scales.ExpLinear: _explinear,
    scales.StdPlus: _stdplus,
    scales.Bounded: _bounded,
    scales.SoftClip: _softclip,
    scales.Clamp: _clamp,
    scales.Abs: _abs,
    scales.Floor: _floor,
}
