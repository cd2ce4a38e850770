"""Models p(x|z) p(z): the VAE with its likelihoods, networks and priors, and one whose posterior is known."""

__all__ = ["VAE", "MLPDecoder", "MLPEncoder", "likelihoods"]

from pyro_vae.models import likelihoods
from pyro_vae.models.networks import MLPDecoder, MLPEncoder
from pyro_vae.models.vae import VAE
