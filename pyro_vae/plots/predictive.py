"""What posteriors predict, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import WIDTH, guide_colors
from pyro_vae.posterior.tree import align_draws

Array = NDArray[np.float64]
KINDS = {"training": "-", "held out": "--"}


def plot_predictive(
    trees: Mapping[str, xr.DataTree],
    *,
    observations: Sequence[int] | None = None,
    image_shape: tuple[int, int] | None = None,
    site: str | None = None,
) -> Figure:
    """Images in one row, and below them for each guide what its posterior predicts in their place.

    Parameters
    ----------
    trees
        By guide, from :func:`~pyro_vae.posterior.tree.from_pyro_svi`, of the same observations.
    observations
        Which to show, by label; by default the first eight.
    image_shape
        Height and width of an image; by default square.
    site
        The observed site; only needed if there are several.

    Raises
    ------
    ValueError
        If the features do not fill an image.
    """
    data = next(iter(trees.values()))["observed_data"].to_dataset()
    originals = data[site or str(next(iter(data)))]
    if observations is None:
        observations = originals["observation"].values[:8].tolist()
    originals = originals.sel(observation=list(observations))
    shape = image_shape or _image_shape(originals)
    rows = {"original": originals.values.reshape(-1, *shape)}
    for name, tree in trees.items():
        replicates = (
            tree["posterior_predictive"].to_dataset()[originals.name].sel(observation=list(observations))
        )
        rows[str(name)] = replicates.mean(("chain", "draw")).values.reshape(-1, *shape)
    low = min(float(images.min()) for images in rows.values())
    high = max(float(images.max()) for images in rows.values())
    figure = ShownFigure(
        figsize=(WIDTH, 1.1 + (WIDTH - 1.3) / len(observations) * len(rows)), layout="constrained"
    )
    grid = figure.subplots(len(rows), len(observations), squeeze=False)
    for line, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axes, index in zip(grid[0], observations, strict=True):
        axes.set_title(f"#{index}", fontsize=9)
    figure.suptitle(
        f"observations, and means of their posterior predictive (white {low:.3g}, black {high:.3g})",
        fontsize=10,
    )
    return figure


def plot_forest(
    trees: Mapping[str, xr.DataTree], *, observations: Sequence[int] | None = None, site: str | None = None
) -> Figure:
    """ArviZ forest of the latents of a few observations: medians with 50% and 94% intervals for each guide.

    Parameters
    ----------
    trees
        By guide, from :func:`~pyro_vae.posterior.tree.from_pyro_svi`, of the same observations; numbers of
        draws may differ.
    observations
        Which to show, by label; by default the first two.
    site
        The latent site; by default the first.
    """
    import arviz_plots
    from matplotlib import pyplot

    aligned = align_draws(trees)
    colors = list(guide_colors(list(aligned)).values())
    first = next(iter(aligned.values()))["posterior"].to_dataset()
    site = site or str(next(iter(first)))
    if observations is None:
        observations = first["observation"].values[:2].tolist()
    shown = first[site].sel(observation=list(observations))
    labels = [str(dim) for dim in shown.dims if dim not in ("chain", "draw")]
    rows = math.prod(shown.sizes[dim] for dim in labels)
    collection: Any = arviz_plots.plot_forest(
        aligned,
        var_names=[site],
        coords={"observation": list(observations)},
        combined=True,
        labels=labels,
        shade_label=labels[0],
        point_estimate="median",
        ci_kind="eti",
        ci_probs=(0.5, 0.94),
        backend="matplotlib",
        color=colors,
        figure_kwargs={"figsize": (WIDTH, 1.6 + 0.3 * rows)},
    )
    figure: Figure = collection.viz["figure"].item()
    figure.set_layout_engine("constrained")
    collection.add_legend("model", loc="outside upper center", ncols=len(aligned), title="guide")
    caption = "value of the latent: median, 50% and 94% interval."
    if len(aligned) > 1:
        caption += (
            " If every guide trained a decoder of its own,\n"
            "a coordinate need not mean the same to two guides: compare widths, not places."
        )
    figure.supxlabel(caption, fontsize=9)
    pyplot.close(figure)  # it stays usable, and no notebook shows it twice
    return figure


def _image_shape(images: xr.DataArray) -> tuple[int, int]:
    event = images.shape[1:]
    if len(event) == 2:
        return event[0], event[1]
    side = math.isqrt(math.prod(event))
    if side * side != math.prod(event):
        raise ValueError(
            f"{math.prod(event)} features do not fill a square image; give image_shape=(height, width)"
        )
    return side, side
