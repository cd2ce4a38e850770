"""Fitting: objectives, the captured step, the loop, and what a fit returns."""

from pyro_vae.svi.fitted import Fit
from pyro_vae.svi.fitting import fit
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.launch import RankError
from pyro_vae.svi.nonfinite import NonFiniteError
from pyro_vae.svi.objective import ELBO
from pyro_vae.svi.path_derivative import STL
from pyro_vae.svi.renyi import IWAE, Renyi
from pyro_vae.svi.resuming import Checkpoint
from pyro_vae.svi.sweeping import sweep

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "Checkpoint",
    "EpochRecord",
    "Fit",
    "NonFiniteError",
    "RankError",
    "Renyi",
    "fit",
    "sweep",
]
