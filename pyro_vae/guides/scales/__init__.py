"""Scale maps: from an unconstrained number to σ > 0, each with its own log, slope, inverse and constraint.

``scales.get("softplus")`` gives a map by name, ``scales.table()`` lists them.
"""

from pyro_vae.guides.scales.base import ScaleMap
from pyro_vae.guides.scales.bounded import Bounded, SoftClip
from pyro_vae.guides.scales.constraint import ScaleConstraint
from pyro_vae.guides.scales.conversion import convert
from pyro_vae.guides.scales.explinear import ExpLinear
from pyro_vae.guides.scales.exponential import LogStd, LogVar
from pyro_vae.guides.scales.floor import Floor
from pyro_vae.guides.scales.hard import Abs, Clamp
from pyro_vae.guides.scales.registry import get, names, register, table
from pyro_vae.guides.scales.softplus import Softplus, SoftplusVar
from pyro_vae.guides.scales.stdplus import StdPlus

__all__ = [
    "Abs",
    "Bounded",
    "Clamp",
    "ExpLinear",
    "Floor",
    "LogStd",
    "LogVar",
    "ScaleConstraint",
    "ScaleMap",
    "SoftClip",
    "Softplus",
    "SoftplusVar",
    "StdPlus",
    "convert",
    "get",
    "names",
    "register",
    "table",
]
