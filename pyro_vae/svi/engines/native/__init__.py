"""A captured step as one generated C++ function that takes many steps per call."""

from pyro_vae.svi.engines.native.build import BuildError
from pyro_vae.svi.engines.native.engine import NativeSteps, supported
from pyro_vae.svi.engines.native.timing import is_faster, speedup

__all__ = ["BuildError", "NativeSteps", "is_faster", "speedup", "supported"]
