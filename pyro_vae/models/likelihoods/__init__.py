"""Likelihoods p(x|z): how a decoder's output becomes a distribution of the data.

A likelihood is a small frozen object. It says how many numbers per feature the decoder gives (`outputs`),
turns them into a Pyro distribution (`distribution`), and looks at a data set once, before any fitting
(`check`). Where a decoder gives several numbers per feature, they lie one after the other along the first
event dimension: first all locations, then all scales; for images, along the channels.
"""

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "Dispersion",
    "Likelihood",
    "LogScale",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ScaleMap",
    "StudentT",
    "get",
    "names",
]

from pyro_vae.models.likelihoods.base import Likelihood
from pyro_vae.models.likelihoods.continuous import ContinuousBernoulli, Normal, StudentT
from pyro_vae.models.likelihoods.discrete import Bernoulli, Binomial, Categorical, NegativeBinomial, Poisson
from pyro_vae.models.likelihoods.dispersion import Dispersion
from pyro_vae.models.likelihoods.named import get, names
from pyro_vae.models.scale_map import LogScale, ScaleMap
