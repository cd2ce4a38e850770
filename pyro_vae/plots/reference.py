"""A figure of what a guide says of the latents, beside draws of their posterior that can be believed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import WIDTH, bare, guide_colors
from pyro_vae.posterior.truth.chains import all_latents

INTERVAL = (0.05, 0.95)
APART = 0.17
"""Of guide and reference from the middle of a latent's line."""
MOST_LATENTS = 12
"""Of more, those that the guide is surest about."""


def plot_reference(trees: Mapping[str, xr.DataTree]) -> Figure:
    """Mean and 90% interval of each latent, of the guide and of the posterior; a row for each guide.

    Parameters
    ----------
    trees
        By guide, with ``posterior``, draws of the guide, and for some of its observations ``repaired`` and
        ``repair``, draws and report of :func:`~pyro_vae.posterior.repair.ladder.repair`. Draws that are not
        believable are not shown.
    """
    colors = guide_colors(list(trees))
    repairs = [tree["repair"].to_dataset() for tree in trees.values()]
    columns = max(report.sizes["observation"] for report in repairs)
    guides = {name: _surest(_flat(tree["posterior"].to_dataset())) for name, tree in trees.items()}
    latents = max(draws.sizes["latent"] for draws in guides.values())
    height = 0.7 + len(trees) * (0.55 + 0.16 * latents)
    figure = ShownFigure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(trees), columns, squeeze=False)
    for line, (name, tree), report in zip(grid, trees.items(), repairs, strict=True):
        names = guides[name]["latent"].values
        truth = _flat(tree["repaired"].to_dataset()).sel(latent=names)
        for axes, label in zip(line, report["observation"].values, strict=False):
            of_this = report.sel(observation=label)
            reference = truth.sel(observation=label) if bool(of_this["believable"]) else None
            _draw(axes, guides[name].sel(observation=label), reference, colors[str(name)])
            source = str(of_this["step"].item()) if reference is not None else "none believable"
            axes.set_title(f"#{label}: {source}", fontsize=9)
        line[0].set_yticks(range(len(names)), names, fontsize=8)
        line[0].set_ylabel(str(name))
    handles = [Line2D([], [], color=color, marker="o", ms=3, label=name) for name, color in colors.items()]
    handles.append(
        Line2D([], [], color="black", marker="s", ms=3, label="reference, by the step in the title")
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    figure.supxlabel("value of the latent: mean and 90% interval", fontsize=9)
    return figure


def _draw(axes: Axes, guide: xr.DataArray, reference: xr.DataArray | None, color: str) -> None:
    rows = np.arange(guide.sizes["latent"])
    for draws, shift, marker, shade in ((guide, -APART, "o", color), (reference, APART, "s", "black")):
        if draws is None:
            continue
        mean, (low, high) = draws.mean("draw").values, draws.quantile(INTERVAL, "draw").values
        axes.errorbar(
            mean, rows + shift, xerr=[mean - low, high - mean], fmt=marker, ms=2.5, lw=1.2, color=shade
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8)
    bare(axes)


def _surest(draws: xr.DataArray) -> xr.DataArray:
    """The latents that are known best, in their order, as many as fit."""
    spread = draws.std("draw").mean("observation").values
    return draws.isel(latent=np.sort(np.argsort(spread)[:MOST_LATENTS]))


def _flat(posterior: xr.Dataset) -> xr.DataArray:
    """The first latent site as (draw, observation, latent), its numbers named."""
    return all_latents(posterior[[next(iter(posterior.data_vars))]], stack=False).isel(chain=0)
