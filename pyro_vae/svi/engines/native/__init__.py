"""Make a captured step one generated C++ function that takes many steps per call."""

from pyro_vae.svi.engines.native.build import has_compiler
from pyro_vae.svi.engines.native.engine import NativeFunction, supported

__all__ = ["NativeFunction", "has_compiler", "supported"]
