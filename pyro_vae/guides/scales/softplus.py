"""σ, or σ², as the softplus of raw."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.arguments import positive_number
from pyro_vae.guides.scales.base import ScaleMap

# Above this, softplus(t) = t to the last bit of a float64; below minus this, softplus(t) = exp(t) likewise.
_EDGE = 40.0


def _softplus(t: Tensor) -> Tensor:
    return softplus(t, threshold=_EDGE)


def _log_softplus(t: Tensor) -> Tensor:
    """log softplus(t), which is t itself far below 0, where softplus underflows."""
    return torch.where(t < -_EDGE, t, _softplus(t.clamp_min(-_EDGE)).log())


def _log_softplus_slope(t: Tensor) -> Tensor:
    inner = t.clamp_min(-_EDGE)
    return inner.sigmoid() / _softplus(inner)


class Softplus(ScaleMap):
    r"""σ = log(1 + exp(β raw)) / β: exponential for negative raw, linear for positive.

    ``beta=math.log(2)`` gives σ(0) = 1 (Hazami, Mama and Thurairatnam, 2022, Efficient-VDVAE: Less is more).

    Parameters
    ----------
    beta : float
        Sharpness β > 0 of the bend.

    Examples
    --------
    >>> import torch
    >>> Softplus().log_scale(torch.tensor([-100.0, 0.0, 100.0]))
    tensor([-100.0000,   -0.3665,    4.6052])
    """

    formula = "log(1 + exp(beta·raw)) / beta"
    remark = "KL gradient grows like σ; beta=log 2 gives σ(0) = 1"

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = positive_number("beta", beta, no_number=TypeError)

    def _log_scale(self, raw: Tensor) -> Tensor:
        return _log_softplus(self.beta * raw) - math.log(self.beta)

    def _slope(self, raw: Tensor) -> Tensor:
        return self.beta * _log_softplus_slope(self.beta * raw)

    def _log_abs_det_jacobian(self, raw: Tensor) -> Tensor:
        return logsigmoid(self.beta * raw)

    def _raw(self, scale: Tensor) -> Tensor:
        y = self.beta * scale
        return (y + (-torch.expm1(-y)).log()) / self.beta


class SoftplusVar(ScaleMap):
    """The variance is the softplus of raw: σ = sqrt(log(1 + exp(raw))).

    The gradient of KL(N(0, σ²) ‖ N(0, 1)) in raw stays between -1/2 and 1/2.

    Examples
    --------
    >>> import torch
    >>> SoftplusVar()(torch.tensor([-4.0, 0.0, 4.0]))
    tensor([0.1347, 0.8326, 2.0045])
    """

    name = "softplus-var"
    formula = "sqrt(log(1 + exp(raw)))"
    remark = "KL gradient within ±1/2"

    def _log_scale(self, raw: Tensor) -> Tensor:
        return 0.5 * _log_softplus(raw)

    def _slope(self, raw: Tensor) -> Tensor:
        return 0.5 * _log_softplus_slope(raw)

    def _raw(self, scale: Tensor) -> Tensor:
        inner = scale.clamp_min(math.exp(-_EDGE / 2))
        y = inner * inner
        return 2 * (scale.log() - inner.log()) + y + (-torch.expm1(-y)).log()
