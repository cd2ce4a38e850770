"""Data sets by name or from a user's own files, ready for a model."""

__all__ = ["DataSet", "DynamicBinarization", "binarize", "load", "names", "split", "standardize"]

from pyro_vae.data.binarization import DynamicBinarization, binarize
from pyro_vae.data.dataset import DataSet, split, standardize
from pyro_vae.data.loading import load
from pyro_vae.data.named import names
