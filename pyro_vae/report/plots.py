"""Figures of a study. Each function takes plain data and returns a matplotlib figure.

A guide has one colour and one marker in every figure, by its place among the names. Nothing is shown and no
global state of matplotlib changes; save with ``figure.savefig(path)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyro_vae.posterior.pairing import Diagnostics, paired_differences
from pyro_vae.posterior.tree import align_draws
from pyro_vae.report.style import COLORS, GREY, WIDTH, bare, guide_colors

__all__ = ["plot_evidence", "plot_forest", "plot_khat", "plot_predictive", "plot_training"]

Array = NDArray[np.float64]

KINDS = {"training": "-", "held out": "--"}


def plot_training(histories: Mapping[str, Sequence[xr.Dataset]]) -> Figure:
    """Loss by epoch of every guide and seed: the whole fit, and its second half enlarged.

    Parameters
    ----------
    histories
        By guide, one history for each seed (``fit.history``): ``loss`` over ``step``, in nats per
        observation, with ``epoch_step``, the step at which each epoch ended, and ``validation`` over
        ``epoch`` where there was one.
    """
    colors = guide_colors(list(histories))
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    whole, late = figure.subplots(1, 2)
    second_halves, longest, held_out = [np.empty(0)], 1, False
    for name, fits in histories.items():
        for history in fits:
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
    guides = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    whole.legend(handles=guides, title="guide, one line per seed", frameon=False)
    if held_out:
        kinds = [Line2D([], [], color=GREY, ls=style, label=kind) for kind, style in KINDS.items()]
        late.legend(handles=kinds, frameon=False)
    return figure


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
    figure = Figure(figsize=(WIDTH, 1.4 + 0.6 * rows), layout="constrained")
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


def plot_khat(diagnostics: Mapping[str, xr.Dataset | Sequence[xr.Dataset]]) -> Figure:
    r"""Histogram of k̂ over observations for each guide, with the threshold above which importance weights
    are not believed.

    Parameters
    ----------
    diagnostics
        By guide, what :func:`~pyro_vae.posterior.importance.diagnose` returns; several seeds are pooled.
    """
    pooled, attrs = {}, {}
    for name, given in diagnostics.items():
        fits = [given] if isinstance(given, xr.Dataset) else list(given)
        pooled[str(name)] = np.concatenate([fit["khat"].values.ravel() for fit in fits])
        attrs[str(name)] = fits[0].attrs
    colors = guide_colors(list(pooled))
    threshold = float(next(iter(attrs.values()))["khat_threshold"])
    finite = np.concatenate([k[np.isfinite(k)] for k in pooled.values()])
    low = min(-0.5, float(finite.min(initial=0.0)))
    high = max(1.2, float(finite.max(initial=1.0)))
    bins = np.linspace(low, high, 41)
    figure = Figure(figsize=(WIDTH, 0.9 + 1.3 * len(pooled)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(pooled), 1, sharex=True, sharey=True))
    for axes, (name, khat) in zip(panels, pooled.items(), strict=True):
        # infinities are answers, not gaps: they go into the outermost bins
        axes.hist(np.clip(khat, low, high), bins=bins, color=colors[name])
        axes.axvline(threshold, color="black", lw=1, ls="--")
        share = float((khat > threshold).mean())
        axes.set_title(
            f"{name}: {share:.0%} of {khat.size} above {threshold:.2f}{_infinities(khat)}",
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
    figure = Figure(
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


def _by_epoch(history: xr.Dataset) -> Array:
    """Mean training loss and held-out loss of each epoch, (epochs, 2); NaN where there is none."""
    ends = history["epoch_step"].values.astype(int)
    parts = np.split(history["loss"].values, ends[:-1])
    training = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts]
    held_out = history["validation"].values if "validation" in history else np.full(len(ends), np.nan)
    return np.column_stack([training, held_out])


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


def _infinities(khat: Array) -> str:
    counts = {"exact": int(np.isneginf(khat).sum()), "no tail": int(np.isposinf(khat).sum())}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f" ({told})" if told else ""
