"""The guide as most code writes it: σ = g(raw) in one line, and torch's own Normal."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.guides import AmortizedNormal

__all__ = ["PLAIN", "PlainNormal"]

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "logvar": lambda raw: (0.5 * raw).exp(),
    "logstd": torch.exp,
    "softplus": softplus,
    "softplus-var": lambda raw: softplus(raw).sqrt(),
    "explinear": lambda raw: torch.where(raw < 0, raw.clamp_max(0).exp(), 1 + raw.clamp_min(0)).sqrt(),
}
"""σ by the name of the map, without its own log."""


class PlainNormal(AmortizedNormal):
    """:class:`~pyro_vae.guides.AmortizedNormal` with torch's arithmetic in place of the library's: log σ is
    the log of a σ that has been rounded, and the density of a draw is computed back from the draw."""

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        loc_head: Any = self.loc_head
        scale_head: Any = self.scale_head
        sigma = PLAIN[self.scale_map.name]
        return {"loc": loc_head(features), "scale": sigma(scale_head.raw(features))}

    def _marginals(self, parameters: dict[str, Tensor]) -> dict[str, dist.TorchDistribution]:
        (site,) = self.sites
        q = dist.Normal(parameters["loc"], parameters["scale"], validate_args=False).to_event(1)
        return {site.name: q}
