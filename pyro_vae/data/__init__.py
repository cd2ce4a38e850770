"""Named data sets and a user's own files, ready for a model."""

__all__ = ["DataSet", "load", "split"]

from pyro_vae.data.dataset import DataSet, split
from pyro_vae.data.loading import load
