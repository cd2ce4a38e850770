"""The guide as most code writes it: σ = g(raw) in one line, and torch's own Normal."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.guides import AmortizedNormal
from pyro_vae.guides.latents.sites import LocalSite

__all__ = ["PLAIN", "PlainNormal"]

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "logvar": lambda raw: (0.5 * raw).exp(),
    "logstd": torch.exp,
    "softplus": softplus,
    "softplus-var": lambda raw: softplus(raw).sqrt(),
    "explinear": lambda raw: torch.where(raw < 0, raw.clamp_max(0).exp(), 1 + raw.clamp_min(0)).sqrt(),
}
"""σ by the name of the map, without its own log."""


class _Plain:
    """Independent Normals of one latent, by their σ."""

    factorizes: ClassVar[bool] = True

    def joint(self, parameters: dict[str, Tensor]) -> dist.TorchDistribution:
        q: dist.TorchDistribution = dist.Normal(
            parameters["loc"], parameters["scale"], validate_args=False
        ).to_event(1)
        return q

    def marginals(
        self,
        sites: tuple[LocalSite, ...],
        parameters: dict[str, Tensor],
        *,
        in_plates: bool = False,  # noqa: ARG002 - there are none
    ) -> dict[str, dist.TorchDistribution]:
        (site,) = sites
        return {site.name: self.joint(parameters)}

    def scale(self, parameters: dict[str, Tensor]) -> Tensor:
        return parameters["scale"]


class PlainNormal(AmortizedNormal):
    """:class:`~pyro_vae.guides.AmortizedNormal` with torch's arithmetic in place of the library's: log σ is
    the log of a σ that has been rounded, and the density of a draw is computed back from the draw."""

    family = _Plain()

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        loc_head: Any = self.loc_head
        scale_head: Any = self.scale_head
        sigma = PLAIN[self.scale_map.name]
        return {"loc": loc_head(features), "scale": sigma(scale_head.raw(features))}
