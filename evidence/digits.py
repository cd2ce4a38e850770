"""The small VAE on real handwritten digits that several experiments fit, and what counts as a failed fit."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evidence.plain import PlainNormal
from pyro_vae import data
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

__all__ = ["Digits", "load_digits", "make_pair"]

HIDDEN, LATENT = 64, 8


@dataclass(frozen=True)
class Digits:
    """Images of 8 × 8 pixels with integers 0…16."""

    train: Tensor
    """(1438, 64)"""
    held_out: Tensor
    """(359, 64)"""

    @property
    def without_latents(self) -> float:
        """Held-out log evidence, in nats per image, of the best model without latents: an independent
        Binomial for each pixel. A VAE that does not beat it has failed."""
        counts = self.train.double()
        probability = (counts.sum(0) + 1) / (16 * len(counts) + 2)
        binomial = torch.distributions.Binomial(16, probability)
        return float(binomial.log_prob(self.held_out.double()).sum(-1).mean())


@functools.cache
def load_digits() -> Digits:
    """The digits of scikit-learn, split as ``pyro-vae compare digits`` splits them."""
    train, held_out = data.split(data.load("digits"), 0.2, seed=0)
    return Digits(torch.from_numpy(np.array(train.x)), torch.from_numpy(np.array(held_out.x)))


def make_pair(scale: str, *, plain: bool = False) -> tuple[VAE, AmortizedNormal]:
    """A fresh VAE 64-64-8-64-64 and its guide, from torch's current stream; ``plain`` for torch's Normal."""
    decoder = MLPDecoder(LATENT, [HIDDEN], 64)
    model = VAE(decoder, LATENT, likelihoods.Binomial(16))
    model.init_output(load_digits().train)
    encoder = MLPEncoder(64, [HIDDEN])
    return model, (PlainNormal if plain else AmortizedNormal)(model, encoder, scale=scale)
