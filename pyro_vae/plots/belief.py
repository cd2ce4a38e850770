"""Figures of how far a guide's posterior can be believed: calibration, gaps, active units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import GREY, REFINED, WIDTH, bare, by_name, guide_colors

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_calibration(calibrations: Mapping[str, xr.Dataset] | xr.Dataset) -> Figure:
    """How often central intervals hold the latents that made the data, and where in q those latents lie.

    Parameters
    ----------
    calibrations
        By guide, or of one alone, from :func:`~pyro_vae.posterior.simulated.calibration.calibrate`; a
        dimension ``seed`` is pooled.
    """
    calibrations = by_name(calibrations)
    colors = guide_colors(list(calibrations))
    figure = ShownFigure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    right.axhline(1, color=GREY, lw=1, ls="--")
    bins = np.linspace(0, 1, 21)
    for (name, given), marker in zip(calibrations.items(), MARKERS * len(calibrations), strict=False):
        covered = given["coverage"].mean([dim for dim in given["coverage"].dims if dim != "level"])
        style = {"color": colors[str(name)], "label": str(name)}
        hollow = {"mfc": "white"} if str(name).endswith(REFINED) else {}
        left.plot(covered["level"], covered, marker=marker, ms=5, lw=1.2, **style, **hollow)
        density, _ = np.histogram(given["pit"].values, bins=bins, density=True)
        right.stairs(density, bins, lw=1.4, ls=":" if hollow else "-", **style)
    left.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="central interval of q", ylabel="share of latents inside")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_title("coverage (dashed: right)", fontsize=10)
    if any(map(str, calibrations)):
        left.legend(frameon=False, loc="lower right", fontsize=8)
    right.set(xlim=(0, 1), xlabel="Q(z | x) at the true z", ylabel="density")
    right.set_ylim(bottom=0)
    right.set_title("∪ too narrow, ∩ too wide", fontsize=10)
    for axes in (left, right):
        bare(axes)
    return figure


def plot_gaps(gaps: Mapping[str, xr.Dataset] | xr.Dataset) -> Figure:
    """What each guide loses, in nats per observation: by its family, and by its encoder.

    Parameters
    ----------
    gaps
        By guide, or of one alone, from :func:`~pyro_vae.posterior.gaps.inference_gaps`. Error bars are two
        standard errors over the observations.
    """
    gaps = by_name(gaps)
    names = list(gaps)
    parts = {"approximation_gap": "family (approximation)", "amortization_gap": "encoder (amortization)"}
    figure = ShownFigure(figsize=(WIDTH, 1.3 + 0.55 * len(names)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(names))[::-1]
    before = np.zeros(len(names))
    for (part, label), color, shift in zip(parts.items(), ("#56B4E9", "#D55E00"), (0.12, -0.12), strict=True):
        values = [gaps[name][part].values for name in names]
        values = [value[np.isfinite(value)] for value in values]  # where the gap is known
        means = np.array([value.mean() for value in values])
        errors = np.array([2 * value.std(ddof=1) / np.sqrt(value.size) for value in values])
        axes.barh(rows, means, left=before, height=0.6, color=color, label=label)
        before = before + means
        axes.errorbar(before, rows + shift, xerr=errors, fmt="none", ecolor="black", lw=1, capsize=3)
    axes.set_yticks(rows, names)
    axes.axvline(0, color="black", lw=0.8)
    observations = next(iter(gaps.values())).sizes["observation"]
    axes.set_xlabel(f"nats per observation below log p(x), mean of {observations} (bars: 2 standard errors)")
    bare(axes)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_units(units: Mapping[str, xr.Dataset] | xr.Dataset) -> Figure:
    """KL of each latent dimension, largest first; a line for each seed, hollow where a dimension is inactive.

    Parameters
    ----------
    units
        By guide, or of one alone, from :func:`~pyro_vae.posterior.collapse.active_units`, with or without a
        dimension ``seed``.
    """
    units = by_name(units)
    colors = guide_colors(list(units))
    figure = ShownFigure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, given), marker in zip(units.items(), MARKERS * len(units), strict=False):
        fits = given if "seed" in given.dims else given.expand_dims("seed")
        for seed in range(fits.sizes["seed"]):
            fit = fits.isel(seed=seed)
            _draw_units(axes, fit, colors[str(name)], marker, str(name) if seed == 0 else None)
    axes.set(xlabel="latent dimension, by KL", ylabel="KL (nats per observation)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if any(map(str, units)):
        axes.legend(frameon=False, title="hollow: inactive")
    bare(axes)
    return figure


def _draw_units(axes: Axes, fit: xr.Dataset, color: str, marker: str, label: str | None) -> None:
    order = np.argsort(-fit["kl"].values)
    kl, active = fit["kl"].values[order], fit["active"].values[order].astype(bool)
    ranks = np.arange(1, len(kl) + 1)
    axes.plot(ranks, kl, color=color, lw=1, marker=marker, ms=5, label=label)
    axes.plot(ranks[~active], kl[~active], color=color, ls="", marker=marker, ms=5, mfc="white")
