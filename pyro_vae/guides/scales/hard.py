"""Maps with a kink, widely used and here for comparison: not bijective, with dead or jumping gradients."""

import math

import torch
from torch import Tensor

from pyro_vae.arguments import positive_number
from pyro_vae.guides.scales.base import ScaleMap


class Clamp(ScaleMap):
    """σ = max(raw, low): the hard constraint, with no gradient below ``low``.

    Not bijective: its constraint works with ``transform_to`` (``pyro.param``, autoguides) and is refused by
    ``biject_to``. ``inv`` gives raw = σ.

    Parameters
    ----------
    low : float
        The least σ, > 0. The default is a variance of 1e-6, at which torch's ``GaussianNLLLoss`` clamps.

    Examples
    --------
    >>> import torch
    >>> Clamp(low=0.1)(torch.tensor([-1.0, 0.5]))
    tensor([0.1000, 0.5000])
    """

    formula = "max(raw, low)"
    remark = "counter-example: no gradient below low"
    bijective = False

    def __init__(self, low: float = 1e-3) -> None:
        super().__init__()
        self.low = positive_number("low", low, no_number=TypeError)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, math.inf

    def _log_scale(self, raw: Tensor) -> Tensor:
        return raw.clamp_min(self.low).log()

    def _slope(self, raw: Tensor) -> Tensor:
        return torch.where(raw >= self.low, 1 / raw.clamp_min(self.low), 0.0)

    def _raw(self, scale: Tensor) -> Tensor:
        return scale.clamp_min(self.low)


class Abs(ScaleMap):
    """σ = |raw| + low: two raws for each σ, and a kink between them.

    Not bijective: its constraint works with ``transform_to`` (``pyro.param``, autoguides) and is refused by
    ``biject_to``. ``inv`` gives the raw ≥ 0.

    Parameters
    ----------
    low : float
        The least σ, > 0.

    Examples
    --------
    >>> import torch
    >>> Abs(low=0.1)(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([1.1000, 0.1000, 1.1000])
    """

    formula = "|raw| + low"
    remark = "counter-example: not bijective; KL gradient jumps at 0 by 2/low"
    bijective = False

    def __init__(self, low: float = 1e-3) -> None:
        super().__init__()
        self.low = positive_number("low", low, no_number=TypeError)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, math.inf

    @property
    def sign(self) -> int:
        raise NotImplementedError(f"{self!r} is not monotone, so it has no sign.")

    def _log_scale(self, raw: Tensor) -> Tensor:
        return (raw.abs() + self.low).log()

    def _slope(self, raw: Tensor) -> Tensor:
        return raw.sign() / (raw.abs() + self.low)

    def _raw(self, scale: Tensor) -> Tensor:
        return (scale - self.low).clamp_min(0.0)
