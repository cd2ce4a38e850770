"""Fitting: objectives, the captured step, the loop, and what a fit returns."""

from pyro_vae.svi.fitting import fit
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loggers import to_tensorboard, to_wandb
from pyro_vae.svi.nonfinite import NonFiniteError
from pyro_vae.svi.objectives.elbo import ELBO
from pyro_vae.svi.objectives.renyi import IWAE, Renyi
from pyro_vae.svi.objectives.stl import STL
from pyro_vae.svi.parallel.launch import RankError
from pyro_vae.svi.pyro_svi.svi import SVI
from pyro_vae.svi.result import Fit
from pyro_vae.svi.state.resuming import Checkpoint
from pyro_vae.svi.sweeping import sweep

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "SVI",
    "Checkpoint",
    "EpochRecord",
    "Fit",
    "NonFiniteError",
    "RankError",
    "Renyi",
    "fit",
    "sweep",
    "to_tensorboard",
    "to_wandb",
]
