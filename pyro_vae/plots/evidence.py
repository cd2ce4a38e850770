"""Evidence compared in pairs, and the k̂ that says whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_vae.figures import ShownFigure
from pyro_vae.plots.style import COLORS, GREY, WIDTH, bare, by_name, guide_colors
from pyro_vae.posterior.pairing import Diagnostics, paired_differences

Array = NDArray[np.float64]
KINDS = {"training": "-", "held out": "--"}


def plot_evidence(
    diagnostics: Mapping[str, Diagnostics | Sequence[Diagnostics]], *, shared_model: bool = False
) -> Figure:
    """Paired differences of guides: a point for each seed, the mean and its joint 95% interval.

    Parameters
    ----------
    diagnostics, shared_model
        As in :func:`~pyro_vae.posterior.comparison.compare`.
    """
    pairs = paired_differences(diagnostics, shared_model=shared_model)
    order = {name: i for i, name in enumerate(map(str, diagnostics))}
    first, second = pairs["first"].values, pairs["second"].values
    pairs = pairs.isel(pair=[i for i in range(len(first)) if order[first[i]] < order[second[i]]])
    rows, seeds = pairs.sizes["pair"], pairs.sizes["seed"]
    figure = ShownFigure(figsize=(WIDTH, 1.4 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=GREY, lw=1, ls=":")
    labels = []
    for row in range(rows):
        pair = pairs.isel(pair=row)
        y, mean = rows - 1 - row, float(pair["mean"])
        if np.isfinite(pair["low"]):  # where evidence is not believed there is no interval
            reach = [[mean - float(pair["low"])], [float(pair["high"]) - mean]]
            axes.errorbar(mean, y, xerr=reach, fmt="o", color="black", ms=6, capsize=4, lw=1.5)
        if seeds > 1:
            spread = np.linspace(-0.12, 0.12, seeds)
            axes.scatter(
                pair["difference"], y - 0.22 + 0 * spread, s=16, color=COLORS[0], alpha=0.8, zorder=3
            )
        verdict = f"{pair['first'].item() if mean > 0 else pair['second'].item()} is better"
        open_ = "not decided" if np.isfinite(pair["low"]) else "not believed"
        labels.append(f"{pair['pair'].item()}\n{verdict if bool(pair['decided']) else open_}")
    axes.set_yticks(range(rows - 1, -1, -1), labels)
    axes.set_ylim(-0.6, rows - 0.4)
    bare(axes)
    axes.set_xlabel(f"difference in {pairs.attrs['measure']} (nats per observation)")
    over = f"{seeds} seeds (small dots)" if seeds > 1 else "observations of one seed: about these fits only"
    axes.set_title(f"mean and joint 95% intervals over {over}", fontsize=10)
    return figure


def plot_khat(
    diagnostics: Mapping[str, xr.Dataset | Sequence[xr.Dataset]] | xr.Dataset | Sequence[xr.Dataset],
) -> Figure:
    r"""Histogram of k̂ over observations for each guide, with the threshold above which importance weights
    are not believed.

    Parameters
    ----------
    diagnostics
        By guide, or of one alone, what :func:`~pyro_vae.posterior.importance.diagnose` returns; several
        seeds are pooled.
    """
    diagnostics = by_name(diagnostics)
    pooled, attrs, over = {}, {}, {}
    for name, given in diagnostics.items():
        fits = [given] if isinstance(given, xr.Dataset) else list(given)
        pooled[str(name)] = np.concatenate([fit["khat"].values.ravel() for fit in fits])
        attrs[str(name)] = fits[0].attrs
        seeds = fits[0].sizes.get("seed", 1) * len(fits)
        observations = pooled[str(name)].size // seeds
        over[str(name)] = f"{observations}" if seeds == 1 else f"{observations} × {seeds} seeds"
    colors = guide_colors(list(pooled))
    threshold = float(next(iter(attrs.values()))["khat_threshold"])
    finite = np.concatenate([k[np.isfinite(k)] for k in pooled.values()])
    low = min(-0.5, float(finite.min(initial=0.0)))
    high = max(1.2, float(finite.max(initial=1.0)))
    bins = np.linspace(low, high, 41)
    figure = ShownFigure(figsize=(WIDTH, 0.9 + 1.3 * len(pooled)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(pooled), 1, sharex=True, sharey=True))
    for axes, (name, khat) in zip(panels, pooled.items(), strict=True):
        # infinities are answers, not gaps: they go into the outermost bins
        axes.hist(np.clip(khat, low, high), bins=bins, color=colors[name])
        axes.axvline(threshold, color="black", lw=1, ls="--")
        share = float((khat > threshold).mean())
        axes.set_title(
            f"{name + ': ' if name else ''}{share:.0%} of {over[name]} above {threshold:.2f}"
            f"{_infinities(khat)}",
            fontsize=10,
            loc="left",
        )
        axes.set_ylabel("observations")
        bare(axes)
    about = next(iter(attrs.values()))
    panels[-1].set_xlabel(
        rf"Pareto $\hat{{k}}$ from {about['draws']} draws of {about['latent_dim']} latent dimensions"
        "  (right of the dashed line: not reliable)"
    )
    return figure


def _infinities(khat: Array) -> str:
    counts = {"exact": int(np.isneginf(khat).sum()), "no tail": int(np.isposinf(khat).sum())}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f" ({told})" if told else ""
