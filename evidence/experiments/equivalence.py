"""1. Equivalence: are log variance and log standard deviation the same fit?

The digits' VAE in float64, the same weights, batches and noise. ``matched``: both under
``lr_multiplier="matched"``. ``equal``: both under the same rate. ``reordered``: log standard deviation
against itself with other batches and noise, the yardstick of what a difference means.
"""

from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae
from evidence.digits import load_digits, make_pair
from evidence.experiment import Effort, Job, Results, Row
from pyro_vae.plots.style import COLORS, WIDTH, bare
from pyro_vae.svi import EpochRecord

SECONDS = 60.0
EPOCHS = {"tiny": 2, "quick": 10, "full": 150}
SEEDS = {"tiny": 1, "quick": 2, "full": 5}
WATCHED = 100
"""Held-out images whose log σ is compared."""
ANOTHER_ORDER = 1000
PAIRS = {
    "matched": (("logvar", "matched", 0), ("logstd", "matched", 0)),
    "equal": (("logvar", None, 0), ("logstd", None, 0)),
    "reordered": (("logstd", None, 0), ("logstd", None, ANOTHER_ORDER)),
}
"""By condition the two fits: scale map, lr_multiplier, what is added to the seed of batches and noise."""


def jobs(effort: Effort) -> list[Job]:
    return [partial(compare_fits, seed, EPOCHS[effort.name]) for seed in range(SEEDS[effort.name])]


def compare_fits(seed: int, epochs: int) -> list[Row]:
    """One seed of all conditions: distances of log σ and of the held-out ELBO after chosen epochs."""
    asked = {fit for pair in PAIRS.values() for fit in pair}
    followed = {fit: follow(*fit, seed=seed, epochs=epochs) for fit in asked}
    rows: list[Row] = []
    for condition, (one, other) in PAIRS.items():
        for (step, a, loss_a), (_, b, loss_b) in zip(followed[one], followed[other], strict=True):
            rms = float((a - b).square().mean().sqrt())
            largest = float((a - b).abs().max())
            rows.append(
                {"condition": condition, "seed": seed, "step": step, "rms": rms, "largest": largest}
                | {"moved": float((a - followed[one][0][1]).square().mean().sqrt()), "elbo": loss_b - loss_a}
            )
    return rows


def follow(
    scale: str, lr_multiplier: str | None, shift: int, *, seed: int, epochs: int
) -> list[tuple[int, Tensor, float]]:
    """(step, log σ of the watched images, held-out loss in nats per image) along a fit."""
    digits = load_digits()
    train, held_out = digits.train.double(), digits.held_out.double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, guide = make_pair(scale)
        model.double()
        guide.encoder.double()
        guide.posterior(held_out[:1])
    noted: list[tuple[int, Tensor, float]] = []
    chosen = set(watched_epochs(epochs))

    def note(record: EpochRecord) -> None:
        if record.epoch + 1 in chosen:
            with torch.no_grad():
                log_scale = guide.local_parameters(held_out[:WATCHED])["log_scale"]
            noted.append((record.step, log_scale, record.validation))

    pyro_vae.fit(
        model,
        guide,
        train,
        epochs=epochs,
        lr=2e-3,
        seed=seed + shift,
        lr_multiplier=lr_multiplier,
        validation=held_out,
        progress=False,
        callbacks=[note],
    )
    return noted


def watched_epochs(epochs: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 11, … and the last."""
    chosen = [1]
    while chosen[-1] < epochs:
        chosen.append(min(epochs, max(chosen[-1] + 1, round(chosen[-1] * 1.35))))
    return chosen


def meeting_step(table: pd.DataFrame) -> float:
    """The first step from which on the maps at equal rate are no farther apart than two orders of the data,
    in the mean over seeds; NaN if they do not come that near."""
    mean = table.groupby(["condition", "step"])["rms"].mean().unstack("condition")
    apart = mean["equal"] > mean["reordered"]
    if not apart.any():
        return float(mean.index[0])
    after = mean.index[mean.index > apart[apart].index[-1]]
    return float(after[0]) if len(after) else float("nan")


def draw(results: Results) -> Figure:
    table = results["equivalence"]
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (condition, label) in zip(COLORS, LABELS.items(), strict=False):
        rows = table[table["condition"] == condition]
        mean = rows.groupby("step")[["rms", "elbo"]].mean()
        left.plot(mean.index, mean["rms"].clip(lower=1e-18), color=color, label=label)
        if condition != "reordered":
            for _, fit in rows.groupby("seed"):
                right.plot(fit["step"], fit["elbo"], color=color, lw=0.7, alpha=0.6)
    left.set(xscale="log", yscale="log", ylim=(3e-19, 3), xlabel="step of Adam")
    left.set_ylabel("rms difference of log σ  (nats)")
    left.set_yticks([1e-18, 1e-12, 1e-6, 1e-2, 1], ["0", "$10^{-12}$", "$10^{-6}$", "$10^{-2}$", "1"])
    right.axhline(0, color="#999999", lw=0.6)
    right.set(xscale="log", xlabel="step of Adam", ylabel="held-out loss, logstd − logvar\n(nats per image)")
    for axes in (left, right):
        bare(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncol=3, frameon=False)
    return figure


LABELS = {
    "matched": "logvar and logstd, matched rates",
    "equal": "equal rates",
    "reordered": "logstd twice, other batches",
}
