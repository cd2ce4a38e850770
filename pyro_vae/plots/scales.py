"""Figures of σ, which is what the guides of a study differ in: over training and over observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import WIDTH, bare, by_name, guide_colors


def plot_scale_history(
    histories: Mapping[str, xr.Dataset | Sequence[xr.Dataset]] | xr.Dataset | Sequence[xr.Dataset],
) -> Figure:
    """σ of each latent dimension by epoch, a panel for each guide.

    Parameters
    ----------
    histories
        By guide, or of one alone, one for each seed, with ``scale`` (epoch, latent).
    """
    histories = by_name(histories)
    colors = guide_colors(list(histories))
    columns = min(3, len(histories))
    rows = -(-len(histories) // columns)
    figure = ShownFigure(figsize=(WIDTH, 0.6 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, fits) in zip(panels.flat, histories.items(), strict=False):
        for history in [fits] if isinstance(fits, xr.Dataset) else fits:
            axes.plot(history["epoch"], history["scale"], color=colors[str(name)], lw=0.8, alpha=0.7)
        axes.set_title(str(name), fontsize=10)
        bare(axes)
    for axes in panels.flat[len(histories) :]:
        axes.set_visible(False)
    panels[0, 0].set_yscale("log")
    _plain_numbers(panels[0, 0].yaxis)
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("σ of q(z|x)", fontsize=10)
    return figure


def plot_scales(latents: Mapping[str, xr.Dataset] | xr.Dataset) -> Figure:
    """Distribution of σ over held-out observations and latent dimensions, a line for each guide.

    Parameters
    ----------
    latents
        By guide, or of one alone, with ``scale`` over observation, latent and, if there are several, seed.
    """
    latents = by_name(latents)
    colors = guide_colors(list(latents))
    scales = {str(name): given["scale"].values.ravel() for name, given in latents.items()}
    shown = np.concatenate([scale[(scale > 0) & np.isfinite(scale)] for scale in scales.values()])
    low, high = (shown.min(), shown.max()) if shown.size else (0.1, 1.0)
    bins = np.geomspace(low / 1.05, high * 1.05, 61)
    figure = ShownFigure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for name, scale in scales.items():
        counts, _ = np.histogram(scale, bins=bins)
        axes.stairs(counts / scale.size, bins, color=colors[name], lw=1.4, label=name)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set(xlabel="σ of q(z|x)", ylabel="share of σ in a bin")
    axes.set_ylim(bottom=0)
    if any(scales):
        axes.legend(frameon=False)
    bare(axes)
    return figure


def _plain_numbers(axis: Axis) -> None:
    """0.2 and not 2 × 10⁻¹ on a logarithmic axis; a tick or two in every factor of three."""
    axis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7), numticks=20))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
