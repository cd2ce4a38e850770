"""Guides q(z|x), and the scale maps and the Normal that they are made of."""

from pyro_vae.guides import scales
from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.guides.scales import ScaleMap

__all__ = ["LogScaleNormal", "ScaleMap", "scales"]
