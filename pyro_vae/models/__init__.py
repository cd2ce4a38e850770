"""Models p(x|z) p(z): variational autoencoders with their parts, and a model whose posterior is known.

Models know nothing of guides: both are plain Pyro and meet in SVI.
"""

__all__ = [
    "PPCA",
    "VAE",
    "Conditional",
    "ConvDecoder",
    "ConvEncoder",
    "HierarchicalVAE",
    "MLPDecoder",
    "MLPEncoder",
    "MixturePrior",
    "Standardize",
    "VampPrior",
    "likelihoods",
    "reconstruct",
    "traverse",
]

from pyro_vae.models import likelihoods
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.convolutions import ConvDecoder, ConvEncoder
from pyro_vae.models.hierarchical import HierarchicalVAE
from pyro_vae.models.linear_gaussian import PPCA
from pyro_vae.models.networks import MLPDecoder, MLPEncoder, Standardize
from pyro_vae.models.priors import MixturePrior, VampPrior
from pyro_vae.models.reconstruction import reconstruct, traverse
from pyro_vae.models.vae import VAE
