"""σ² exponential below raw = 0 and linear above it."""

import torch
from torch import Tensor

from pyro_vae.guides.scales.base import ScaleMap


class ExpLinear(ScaleMap):
    """The variance is exp(raw) for raw < 0 and 1 + raw otherwise; σ(0) = 1.

    The gradient of KL(N(0, σ²) ‖ N(0, 1)) in raw stays between -1/2 and 1/2; Dehaene and Brossard (2021,
    Re-parameterizing VAEs for stability) say why that matters. Often written ``elu(raw) + 1``, which is
    exactly 0 from raw = -18 down in float32; this is not.

    Examples
    --------
    >>> import torch
    >>> ExpLinear()(torch.tensor([-18.0, 0.0, 3.0]))
    tensor([1.2341e-04, 1.0000e+00, 2.0000e+00])
    """

    formula = "sqrt(exp(raw)) if raw < 0 else sqrt(1 + raw)"
    remark = "KL gradient within ±1/2; σ(0) = 1"

    def _log_scale(self, raw: Tensor) -> Tensor:
        return 0.5 * torch.where(raw < 0, raw, raw.clamp_min(0).log1p())

    def _slope(self, raw: Tensor) -> Tensor:
        return 0.5 / (1 + raw.clamp_min(0))

    def _raw(self, scale: Tensor) -> Tensor:
        return torch.where(scale < 1, 2 * scale.log(), (scale - 1) * (scale + 1))
