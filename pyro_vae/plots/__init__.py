"""Figures of what the library returns; each function returns a matplotlib figure.

A guide has one colour and one marker in every figure, by its place among the names. Nothing is shown and no
global state of matplotlib changes; save with ``figure.savefig(path)``.
"""

from pyro_vae.plots.belief import plot_calibration, plot_gaps, plot_units
from pyro_vae.plots.evidence import plot_evidence, plot_khat
from pyro_vae.plots.latents import plot_latents, plot_samples, plot_traversal
from pyro_vae.plots.predictive import plot_forest, plot_predictive
from pyro_vae.plots.reference import plot_reference
from pyro_vae.plots.scales import plot_scale_history, plot_scales
from pyro_vae.plots.training import plot_training

__all__ = [
    "plot_calibration",
    "plot_evidence",
    "plot_forest",
    "plot_gaps",
    "plot_khat",
    "plot_latents",
    "plot_predictive",
    "plot_reference",
    "plot_samples",
    "plot_scale_history",
    "plot_scales",
    "plot_training",
    "plot_traversal",
    "plot_units",
]
