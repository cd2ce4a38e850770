"""A captured step as one generated C++ function that takes many steps per call."""

from pyro_vae.svi.native.build import BuildError
from pyro_vae.svi.native.engine import NativeSteps, supported
from pyro_vae.svi.native.timing import is_faster, speedup

__all__ = ["BuildError", "NativeSteps", "is_faster", "speedup", "supported"]
