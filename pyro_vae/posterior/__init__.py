"""What to believe of a fit: importance weights, ArviZ trees and comparisons.

ArviZ loads when a function first needs it.
"""

from pyro_vae.posterior.comparison import answer, compare
from pyro_vae.posterior.importance import diagnose, log_weights
from pyro_vae.posterior.tree import from_pyro_svi

__all__ = ["answer", "compare", "diagnose", "from_pyro_svi", "log_weights"]
