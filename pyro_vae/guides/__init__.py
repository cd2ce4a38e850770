"""Guides q(z|x), and the scale maps and the Normal that they are made of."""

from pyro_vae.guides import scales
from pyro_vae.guides.amortized import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vae.guides.auto import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro_vae.guides.exporting import PosteriorParameters
from pyro_vae.guides.heads import ScaleHead, raw_parameters
from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.guides.refined import Refined
from pyro_vae.guides.scales import ScaleMap

__all__ = [
    "AmortizedFlow",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "AutoDiagonalNormal",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "LogScaleNormal",
    "PosteriorParameters",
    "Refined",
    "ScaleHead",
    "ScaleMap",
    "raw_parameters",
    "scales",
]
