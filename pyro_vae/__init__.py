"""Variational autoencoder guides, SVI and posterior diagnostics for Pyro.

Everything public is here or one step below: ``pyro_vae.fit``, ``pyro_vae.guides.AmortizedNormal``. Names are
imported when first used, so ``import pyro_vae`` costs nothing that is not needed.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pyro_vae.version import __version__ as __version__

_HOME = {
    "Fit": "pyro_vae.svi",
    "SVI": "pyro_vae.svi",
    "Study": "pyro_vae.study",
    "StudyConfig": "pyro_vae.study",
    "active_units": "pyro_vae.posterior",
    "calibrate": "pyro_vae.posterior",
    "compare": "pyro_vae.posterior",
    "diagnose": "pyro_vae.posterior",
    "fit": "pyro_vae.svi",
    "from_pyro_svi": "pyro_vae.posterior",
    "inference_gaps": "pyro_vae.posterior",
    "log_weights": "pyro_vae.posterior",
    "posterior_error": "pyro_vae.posterior",
    "reference_posterior": "pyro_vae.posterior",
    "refine": "pyro_vae.posterior",
    "repair": "pyro_vae.posterior",
    "resume_study": "pyro_vae.study",
    "run_study": "pyro_vae.study",
    "sweep": "pyro_vae.svi",
}
_MODULES = {
    "data": "pyro_vae.data",
    "guides": "pyro_vae.guides",
    "models": "pyro_vae.models",
    "plots": "pyro_vae.plots",
    "posterior": "pyro_vae.posterior",
    "scales": "pyro_vae.guides.scales",
    "svi": "pyro_vae.svi",
}
__all__ = [
    "SVI",
    "Fit",
    "Study",
    "StudyConfig",
    "active_units",
    "calibrate",
    "compare",
    "data",
    "diagnose",
    "fit",
    "from_pyro_svi",
    "guides",
    "inference_gaps",
    "log_weights",
    "models",
    "plots",
    "posterior",
    "posterior_error",
    "reference_posterior",
    "refine",
    "repair",
    "resume_study",
    "run_study",
    "scales",
    "svi",
    "sweep",
]

if TYPE_CHECKING:
    from pyro_vae import data, guides, models, plots, posterior, svi
    from pyro_vae.guides import scales
    from pyro_vae.posterior import (
        active_units,
        calibrate,
        compare,
        diagnose,
        from_pyro_svi,
        inference_gaps,
        log_weights,
        posterior_error,
        reference_posterior,
        refine,
        repair,
    )
    from pyro_vae.study import Study, StudyConfig, resume_study, run_study
    from pyro_vae.svi import SVI, Fit, fit, sweep


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
