"""Linear layers from an encoder's features to the scale of a guide."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vae.arguments import brief, kind, positive_integer, positive_number
from pyro_vae.guides import scales
from pyro_vae.guides.precision import at_least_float32


def raw_value(scale_map: scales.ScaleMap, init_scale: float) -> float:
    """The number that a map sends to ``init_scale``. Raises ValueError if that is not a positive number or
    the map does not reach it."""
    scale = torch.tensor(positive_number("init_scale", init_scale), dtype=torch.float64)
    if not scale_map.contains(scale):
        low, high = scale_map.bounds
        raise ValueError(
            f"init_scale is {brief(init_scale)}, and the scales of {scale_map!r} lie between {low:g} and "
            f"{high:g}; give another init_scale or another map"
        )
    return float(scale_map.inv(scale))


def initial_slope(scale_map: scales.ScaleMap, init_scale: float) -> float:
    """d log σ / d raw where σ is ``init_scale``."""
    raw = torch.tensor(raw_value(scale_map, init_scale), dtype=torch.float64)
    return float(scale_map.slope(raw))


class ScaleHead(nn.Module):
    r"""A linear layer whose output a scale map reads: features (…, H) to :math:`\log\sigma` (…, D).

    The weight starts at zero and the bias at the map's inverse of ``init_scale``, so that under every map
    :math:`\sigma` starts at ``init_scale`` for every input. The layer may run in bfloat16 or float16; the map
    sees float32.

    Parameters
    ----------
    in_features, out_features
        H and D.
    scale_map
        A name of :func:`pyro_vae.guides.scales.names` or a map.
    init_scale
        σ before training.

    Raises
    ------
    ValueError
        If the map does not reach ``init_scale``.

    Examples
    --------
    >>> head = ScaleHead(16, 2, "logvar", init_scale=0.1)
    >>> head(torch.randn(3, 16)).exp()
    tensor([[0.1000, 0.1000],
            [0.1000, 0.1000],
            [0.1000, 0.1000]], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale_map: str | scales.ScaleMap,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_map = scales.get(scale_map)
        self.init_scale = init_scale
        self.raw = nn.Linear(
            positive_integer("in_features", in_features), positive_integer("out_features", out_features)
        )
        nn.init.zeros_(self.raw.weight)
        nn.init.constant_(self.raw.bias, raw_value(self.scale_map, init_scale))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale_map.log_scale(at_least_float32(self.raw(features)))

    def own_raw_parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """See :func:`raw_parameters`."""
        slope = initial_slope(self.scale_map, self.init_scale)
        return {f"raw.{name}": (parameter, slope) for name, parameter in self.raw.named_parameters()}

    def extra_repr(self) -> str:
        return f"scale_map={self.scale_map}, init_scale={self.init_scale}"


@runtime_checkable
class HasRawParameters(Protocol):
    """A module that knows which of its own parameters a scale map reads."""

    def own_raw_parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """Parameters by their name within the module, each with its slope (:func:`raw_parameters`)."""


def raw_parameters(guide: nn.Module) -> dict[str, tuple[nn.Parameter, float]]:
    r"""The parameters of a guide that a scale map reads, with the speed at which they move log σ.

    Under Adam every parameter moves about one learning rate per step, so :math:`\log\sigma` moves by the
    learning rate times :math:`\mathrm{d}\log\sigma/\mathrm{d}\,\mathrm{raw}`: half as fast under ``"logvar"``
    as under ``"logstd"``. With rate :math:`\mathrm{lr}/\mathrm{slope}` and Adam's :math:`\epsilon \cdot
    \mathrm{slope}` for these parameters the two follow the same trajectory.

    Parameters
    ----------
    guide
        Any module; found are :class:`ScaleHead` and the scales of this package's autoguides, at any depth.
        Lazy guides have them after their first call.

    Returns
    -------
    dict
        Name, as in ``guide.named_parameters()``, to (parameter, slope of its map at its initial scale).

    Examples
    --------
    >>> guide = nn.Sequential(nn.Linear(4, 8), ScaleHead(8, 2, "logvar"))
    >>> {name: slope for name, (_, slope) in raw_parameters(guide).items()}
    {'1.raw.weight': 0.5, '1.raw.bias': 0.5}
    """
    if not isinstance(guide, nn.Module):
        raise TypeError(f"guide is {kind(guide)}; give an nn.Module, such as AmortizedNormal")
    return {
        f"{prefix}.{name}" if prefix else name: pair
        for prefix, module in guide.named_modules()
        if isinstance(module, HasRawParameters)
        for name, pair in module.own_raw_parameters().items()
    }
