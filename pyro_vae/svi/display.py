"""Show a fit: its curve, and the small table of a notebook."""

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

EARLY = 4
"""The axis is fitted to what comes after the first quarter of the steps, so that the fall at the start does
not flatten the rest."""


def loss_figure(history: "xr.Dataset", title: str) -> "Figure":
    """The loss of every step, its mean over each epoch, and the validation loss where there was one.

    Nothing is shown or kept by matplotlib: the figure belongs to the caller.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    from pyro_vae.figures import ShownFigure

    figure = ShownFigure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    steps, losses, ends = (history[name].values for name in ("step", "loss", "epoch_step"))
    axes.plot(steps, losses, color="#56B4E9", lw=0.6, alpha=0.7, label="each step")
    validation = history["validation"].values
    for values, color, label in (
        (epoch_losses(history), "#0072B2", "mean of the epoch"),
        (validation, "#D55E00", "held out"),
    ):
        if np.isfinite(values).any():
            axes.plot(ends, values, color=color, lw=1.5, marker="." if len(ends) < 20 else "", label=label)
    late = np.concatenate([losses[len(losses) // EARLY :], validation[len(ends) // EARLY :]])
    late = late[np.isfinite(late)]
    if late.size and np.ptp(late) > 0:
        margin = 0.05 * np.ptp(late)
        axes.set_ylim(late.min() - margin, late.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per observation)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def epoch_losses(history: "xr.Dataset") -> "NDArray[np.float64]":
    """Mean of the finite losses of each epoch's steps, in nats per observation; NaN where there are none."""
    import numpy as np

    epochs = np.split(history["loss"].values, history["epoch_step"].values[:-1])
    finite = [losses[np.isfinite(losses)] for losses in epochs]
    return np.array([losses.mean() if losses.size else math.nan for losses in finite])


def html_table(title: str, rows: dict[str, object]) -> str:
    """A table of two columns, with everything escaped.

    Examples
    --------
    >>> html_table("Fit", {"engine": "captured"})
    '<table><caption>Fit</caption><tr><th>engine</th><td>captured</td></tr></table>'
    """
    body = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{body}</table>"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)
