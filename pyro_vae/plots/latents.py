"""Figures of what the latent space holds: samples, walks along its axes, and where observations lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import WIDTH, bare, guide_colors

Array = NDArray[np.float64]

PALETTE = colormaps["tab10"]
"""Labels with more values than it has colours are not shown."""
MOST_WALKS = 10


def plot_samples(trees: Mapping[str, xr.DataTree], image_shape: tuple[int, int]) -> Figure:
    """Images drawn from each guide's model, a row for each.

    Parameters
    ----------
    trees
        By guide, with a group ``prior_predictive`` over (chain, draw, feature).
    image_shape
        Height and width.
    """
    samples = [tree["prior_predictive"].to_dataset() for tree in trees.values()]
    drawn = [given[next(iter(given.data_vars))].values for given in samples]
    mosaic = _mosaic(np.stack([images.reshape(-1, *image_shape) for images in drawn]))
    ratio = mosaic.shape[0] / mosaic.shape[1]
    figure = ShownFigure(figsize=(WIDTH, 0.2 + (WIDTH - 0.9) * ratio), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray_r", interpolation="nearest")
    height = mosaic.shape[0] / len(trees)
    axes.set_yticks((np.arange(len(trees)) + 0.5) * height, list(map(str, trees)))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def plot_traversal(
    trees: Mapping[str, xr.DataTree], units: Mapping[str, xr.Dataset], image_shape: tuple[int, int]
) -> Figure:
    """The model's mean image on walks from the origin along each latent axis, a panel for each guide.

    Parameters
    ----------
    trees
        By guide, with a group ``traversal`` over (latent, offset, feature).
    units
        By guide, from :func:`~pyro_vae.posterior.collapse.active_units`: axes are in the order of their KL,
        and of many only the first ten are shown.
    image_shape
        Height and width.
    """
    figure = ShownFigure(layout="constrained")
    panels = figure.subplots(1, len(trees), squeeze=False)[0]
    tallest = 0.0
    for axes, (name, tree) in zip(panels, trees.items(), strict=True):
        walks = tree["traversal"].to_dataset()
        order = np.argsort(-units[str(name)]["kl"].values)[:MOST_WALKS]
        images = walks["x"].values[order].reshape(len(order), -1, *image_shape)
        mosaic = _mosaic(images)
        tallest = max(tallest, mosaic.shape[0] / mosaic.shape[1])
        axes.imshow(mosaic, cmap="gray_r", interpolation="nearest")
        height, width = mosaic.shape[0] / len(order), mosaic.shape[1] / images.shape[1]
        axes.set_yticks((np.arange(len(order)) + 0.5) * height, [f"z[{i}]" for i in order], fontsize=8)
        offsets = walks["offset"].values
        ends = [0, len(offsets) // 2, len(offsets) - 1]
        axes.set_xticks(
            [(i + 0.5) * width for i in ends],
            [f"{offsets[i]:+.0f}" if offsets[i] else "0" for i in ends],
            fontsize=8,
        )
        axes.set_title(str(name), fontsize=10)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel("place on the axis, in standard deviations of the prior", fontsize=9)
    figure.set_size_inches(WIDTH, 0.9 + (WIDTH / len(trees) - 0.5) * tallest)
    return figure


def plot_latents(latents: Mapping[str, xr.Dataset], units: Mapping[str, xr.Dataset]) -> Figure:
    """Posterior means of the observations in the two latent dimensions that carry most, a panel per guide.

    Parameters
    ----------
    latents
        By guide, ``mean`` over (observation, latent); coloured by the coordinate ``label`` if there is one.
    units
        By guide, from :func:`~pyro_vae.posterior.collapse.active_units`.

    Raises
    ------
    ValueError
        If there is only one latent dimension.
    """
    colors = guide_colors(list(latents))
    columns = min(3, len(latents))
    rows = -(-len(latents) // columns)
    figure = ShownFigure(figsize=(WIDTH, 0.9 + (WIDTH / columns) * rows * 0.95), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    classes, codes = _classes(next(iter(latents.values())))
    for axes, (name, given) in zip(panels, latents.items(), strict=False):
        if given.sizes["latent"] < 2:
            raise ValueError(f"'{name}' has one latent dimension; a plane needs two")
        first, second = np.argsort(-units[str(name)]["kl"].values)[:2]
        x, y = given["mean"].isel(latent=first), given["mean"].isel(latent=second)
        if classes.size:
            axes.scatter(x, y, c=PALETTE(codes), s=8, lw=0, alpha=0.85)
        else:
            axes.scatter(x, y, s=8, color=colors[str(name)], alpha=0.7, lw=0)
        axes.set_title(str(name), fontsize=10)
        axes.set_xlabel(f"z[{first}]", fontsize=9)
        axes.set_ylabel(f"z[{second}]", fontsize=9, labelpad=0)
        axes.set_aspect("equal", adjustable="datalim")
        bare(axes)
    for axes in panels[len(latents) :]:
        axes.set_visible(False)
    if classes.size:
        dots = [
            Line2D([], [], ls="", marker="o", ms=5, color=PALETTE(code), label=str(label))
            for code, label in enumerate(classes)
        ]
        figure.legend(
            handles=dots,
            loc="outside lower center",
            ncols=5,
            title="label",
            frameon=False,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    return figure


def _classes(latents: xr.Dataset) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The values of the labels and each observation's place among them; none if they are too many."""
    if "label" not in latents.coords:
        return np.empty(0), np.empty(0, dtype=np.intp)
    classes, codes = np.unique(latents["label"].values, return_inverse=True)
    return (classes, codes) if len(classes) <= PALETTE.N else (np.empty(0), codes)


def _mosaic(images: Array) -> Array:
    """(rows, columns, height, width) as one image, with a thin light frame around each."""
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
