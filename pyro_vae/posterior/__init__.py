"""What to believe of a fit: weights, ArviZ trees, references, gaps, repair, calibration, comparison.

ArviZ loads when a function first needs it.
"""

from pyro_vae.posterior.collapse import active_units
from pyro_vae.posterior.comparison import answer, compare, to_elpd
from pyro_vae.posterior.gaps import inference_gaps
from pyro_vae.posterior.importance import diagnose, log_weights
from pyro_vae.posterior.pairing import paired_differences
from pyro_vae.posterior.readings import (
    coverage_reading,
    evidence_reading,
    gaps_reading,
    sandwich_reading,
    units_reading,
)
from pyro_vae.posterior.refined.refinement import RefinedPosterior, refine
from pyro_vae.posterior.repair.ladder import repair
from pyro_vae.posterior.simulated.calibration import calibrate
from pyro_vae.posterior.tree import align_draws, from_pyro_svi
from pyro_vae.posterior.truth.distance import local_coverage, posterior_error
from pyro_vae.posterior.truth.reference import reference_posterior

__all__ = [
    "RefinedPosterior",
    "active_units",
    "align_draws",
    "answer",
    "calibrate",
    "compare",
    "coverage_reading",
    "diagnose",
    "evidence_reading",
    "from_pyro_svi",
    "gaps_reading",
    "inference_gaps",
    "local_coverage",
    "log_weights",
    "paired_differences",
    "posterior_error",
    "reference_posterior",
    "refine",
    "repair",
    "sandwich_reading",
    "to_elpd",
    "units_reading",
]
