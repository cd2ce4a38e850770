"""A captured step as one generated C++ function that takes many steps per call."""

from pyro_vae.svi.native.build import BuildError
from pyro_vae.svi.native.engine import NativeSteps, StepTerms, supported
from pyro_vae.svi.native.formulas import UnsupportedError
from pyro_vae.svi.native.timing import gives, is_faster, speedup

__all__ = [
    "BuildError",
    "NativeSteps",
    "StepTerms",
    "UnsupportedError",
    "gives",
    "is_faster",
    "speedup",
    "supported",
]
