"""How fits went: the loss by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import GREY, WIDTH, bare, by_name, guide_colors

Array = NDArray[np.float64]
KINDS = {"training": "-", "held out": "--"}


def plot_training(
    histories: Mapping[str, xr.Dataset | Sequence[xr.Dataset]] | xr.Dataset | Sequence[xr.Dataset],
) -> Figure:
    """Loss by epoch of every guide and seed: the whole fit, and its second half enlarged.

    Parameters
    ----------
    histories
        By guide, or of one alone, one history for each seed (``fit.history``): ``loss`` over ``step``, in
        nats per observation, with ``epoch_step``, the step at which each epoch ended, and ``validation`` over
        ``epoch`` where there was one.
    """
    histories = by_name(histories)
    colors = guide_colors(list(histories))
    figure = ShownFigure(figsize=(WIDTH, 3.4), layout="constrained")
    whole, late = figure.subplots(1, 2)
    second_halves, longest, held_out = [np.empty(0)], 1, False
    for name, fits in histories.items():
        for history in [fits] if isinstance(fits, xr.Dataset) else fits:
            losses = _by_epoch(history)
            longest = max(longest, len(losses))
            held_out |= bool(np.isfinite(losses[:, 1]).any())
            second_halves.append(losses[len(losses) // 2 :].ravel())
            for axes in (whole, late):
                axes.plot(np.arange(1, len(losses) + 1), losses[:, 0], color=colors[str(name)], lw=1)
                axes.plot(np.arange(1, len(losses) + 1), losses[:, 1], color=colors[str(name)], lw=1, ls="--")
    shown = np.concatenate(second_halves)
    shown = shown[np.isfinite(shown)]
    if shown.size:
        margin = 0.05 * (np.ptp(shown) or 1)
        late.set_ylim(shown.min() - margin, shown.max() + margin)
    late.set_xlim(longest // 2 + 0.5, longest + 0.5)
    for axes, title in ((whole, "whole fit"), (late, "second half, enlarged")):
        bare(axes)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    whole.set_ylabel("loss (nats per observation)")
    guides = [Line2D([], [], color=color, label=name) for name, color in colors.items() if name]
    if guides:
        whole.legend(handles=guides, title="guide, one line per seed", frameon=False)
    if held_out:
        kinds = [Line2D([], [], color=GREY, ls=style, label=kind) for kind, style in KINDS.items()]
        late.legend(handles=kinds, frameon=False)
    return figure


def _by_epoch(history: xr.Dataset) -> Array:
    """Mean training loss and held-out loss of each epoch, (epochs, 2); NaN where there is none."""
    ends = history["epoch_step"].values.astype(int)
    parts = np.split(history["loss"].values, ends[:-1])
    training = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
    held_out = history["validation"].values if "validation" in history else np.full(len(ends), np.nan)
    return np.column_stack([training, held_out])
