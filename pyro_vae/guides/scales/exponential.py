"""σ as the exponential of raw: the convention, log variance, and log standard deviation."""

import torch
from torch import Tensor

from pyro_vae.guides.scales.base import ScaleMap


class LogVar(ScaleMap):
    """raw is the log of the variance: σ = exp(raw/2), log σ = raw/2.

    The convention of the VAE literature (Kingma and Welling, 2014, Auto-Encoding Variational Bayes).

    Examples
    --------
    >>> import torch
    >>> LogVar()(torch.tensor([-2.0, 0.0, 2.0]))
    tensor([0.3679, 1.0000, 2.7183])
    """

    formula = "exp(raw/2)"
    remark = "the convention; KL gradient grows like σ²"
    log_slope = 0.5

    def _log_scale(self, raw: Tensor) -> Tensor:
        return 0.5 * raw

    def _slope(self, raw: Tensor) -> Tensor:
        return torch.full_like(raw, 0.5)

    def _raw(self, scale: Tensor) -> Tensor:
        return 2 * scale.log()


class LogStd(ScaleMap):
    """raw is the log of the standard deviation: σ = exp(raw), log σ = raw.

    :class:`LogVar` with raw measured in half the unit: log σ² = 2 log σ. Under a plain gradient the same
    learning rate moves log σ four times as fast; under Adam, twice as fast.

    Examples
    --------
    >>> import torch
    >>> LogStd()(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3679, 1.0000, 2.7183])
    """

    formula = "exp(raw)"
    remark = "logvar in another unit: log σ² = 2 log σ"
    log_slope = 1.0

    def _log_scale(self, raw: Tensor) -> Tensor:
        return raw

    def _slope(self, raw: Tensor) -> Tensor:
        return torch.ones_like(raw)

    def _raw(self, scale: Tensor) -> Tensor:
        return scale.log()
