"""A floor under any map."""

import math

import torch
from torch import Tensor

from pyro_vae.arguments import brief, positive_number
from pyro_vae.guides.scales.base import ScaleMap


class Floor(ScaleMap):
    """σ = map(raw) + min_scale, with log σ by log-add-exp.

    Parameters
    ----------
    map : ScaleMap
        The map above the floor.
    min_scale : float
        The floor, > 0.

    Examples
    --------
    >>> import torch
    >>> from pyro_vae.guides import scales
    >>> floored = Floor(scales.LogStd(), min_scale=0.01)
    >>> floored(torch.tensor([-100.0, 0.0]))
    tensor([0.0100, 1.0100])
    >>> floored == scales.get("logstd", min_scale=0.01)
    True
    """

    formula = "map(raw) + min_scale"
    remark = "σ never below min_scale; gradient fades there"

    def __init__(self, map: ScaleMap, min_scale: float) -> None:
        if not isinstance(map, ScaleMap):
            raise TypeError(f"map is {brief(map)}; give a ScaleMap, such as scales.get('softplus')")
        super().__init__()
        self.map = map
        self.min_scale = positive_number("min_scale", min_scale, no_number=TypeError)

    @property
    def bijective(self) -> bool:  # type: ignore[override]
        return self.map.bijective

    @property
    def sign(self) -> int:
        return self.map.sign

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.map.bounds
        return low + self.min_scale, high + self.min_scale

    def _log_scale(self, raw: Tensor) -> Tensor:
        return torch.logaddexp(self.map._log_scale(raw), raw.new_full((), math.log(self.min_scale)))

    def _slope(self, raw: Tensor) -> Tensor:
        return self.map._slope(raw) * (self.map._log_scale(raw) - math.log(self.min_scale)).sigmoid()

    def _log_abs_det_jacobian(self, raw: Tensor) -> Tensor:
        return self.map._log_abs_det_jacobian(raw)

    def _raw(self, scale: Tensor) -> Tensor:
        # A σ that rounded to the floor is taken as the nearest one above, so that raw is finite.
        return self.map._raw(torch.maximum(scale - self.min_scale, torch.finfo(scale.dtype).eps * scale))
