"""Some draws for some observations, with their densities."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Some draws for some observations. Densities are in nats, of shape (draws, observations)."""

    observations: slice
    draws: slice
    """Which ones."""
    latents: dict[str, Tensor]
    """By site name, of shape (draws, observations, ...)."""
    observed: dict[str, Tensor]
    """What the model was conditioned on, by site name, of shape (observations, ...)."""
    log_prior: Tensor
    log_guide: Tensor
    """log p(z) and log q(z|x)."""
    log_likelihood: dict[str, Tensor]
    """log p(x|z) by observed site, and what ``pyro.factor`` adds."""
    log_priors: dict[str, Tensor] = field(default_factory=dict)
    """log p(z) by latent site, each given those before it."""
    prior: dict[str, Tensor] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)
    """Latents drawn from the prior, and data drawn anew given ``latents``, by site, of shape (draws,
    observations, ...); empty unless asked for."""

    @property
    def reconstruction(self) -> Tensor:
        """log p(x|z), all observed sites together."""
        return sum(self.log_likelihood.values(), torch.zeros_like(self.log_prior))

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) − log q(z|x)."""
        return self.log_prior + self.reconstruction - self.log_guide

    @property
    def latent_dim(self) -> int:
        """Latent numbers per observation."""
        return sum(value[0, 0].numel() for value in self.latents.values())
