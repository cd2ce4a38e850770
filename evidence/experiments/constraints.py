"""5. Constrained baselines: σ itself as the parameter, against a map.

The setting of experiment 2. The constraint σ ≥ 0.0001 lies below every truth, so that no optimum is at it and
all that can go wrong goes wrong on the way. ``none``: nothing but the gradient. ``clamp``: max(σ, low).
``projected``: after each step back to the nearest allowed σ. ``lagrange``: dual ascent on the multiplier of
low − σ ≤ 0, at three rates, while the ELBO is taken at max(σ, low). ``abs``: \\|σ\\| + low. Each way is
tried at a constant rate and at one that goes to zero by a cosine, which takes off the jitter of the end.
"""

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from evidence.descent import Rule, descend, kl_from_truth
from evidence.experiment import Effort, Job, Results, Row
from evidence.experiments.truth import STARTS, TRUTH
from pyro_vae import scales
from pyro_vae.plots.style import WIDTH, bare, guide_colors

SECONDS = 60.0
LOW = 1e-4
EARLY = 2000
"""Steps after which the gap is noted the first time."""
STEPS = {"tiny": 300, "quick": 2500, "full": 20_000}
SEEDS = {"tiny": 2, "quick": 5, "full": 20}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
DUAL_RATES = (1.0, 100.0, 10_000.0)
MAPS = ("logvar", "logstd", "softplus", "softplus-var", "explinear", "bounded")
SCHEDULES = ("constant", "cosine")
CONSTRAINED = ("none", "clamp", "abs", "projected", *(f"lagrange {rate:g}" for rate in DUAL_RATES))


@dataclass
class Projected(Rule):
    """Back to the constraint after each step."""

    def project(self, raw: Tensor) -> Tensor:
        return raw.clamp_min(LOW)


@dataclass
class Lagrange(Rule):
    """λ (low − σ) in the loss, with λ ≥ 0 ascended by its own gradient."""

    dual_rate: float = 1.0
    multiplier: Tensor | None = None

    def pull(self, raw: Tensor) -> Tensor:
        before = torch.zeros_like(raw) if self.multiplier is None else self.multiplier
        self.multiplier = (before + self.dual_rate * (LOW - raw)).clamp_min(0)
        return -self.multiplier


def rule(name: str) -> Rule:
    """By name; the constrained ones all take σ = max(raw, low), and differ in what they do besides."""
    if name == "none":
        return Rule(scales.Clamp(low=1e-300))  # σ as it is; where it is not positive there is no gradient
    if name == "projected":
        return Projected(scales.Clamp(low=LOW))
    if name.startswith("lagrange"):
        return Lagrange(scales.Clamp(low=LOW), float(name.split()[1]))
    if name == "bounded":  # every truth well within
        return Rule(scales.get(name, low=LOW, high=1 / LOW))
    if name in ("clamp", "abs"):
        return Rule(scales.get(name, low=LOW))
    return Rule(scales.get(name))


def jobs(effort: Effort) -> list[Job]:
    sizes = (SEEDS[effort.name], STEPS[effort.name])
    return [
        partial(fit_scales, name, start, schedule, *sizes)
        for schedule in SCHEDULES
        for start in STARTS
        for name in (*MAPS, *CONSTRAINED)
    ]


def fit_scales(name: str, start: float, schedule: str, seeds: int, steps: int) -> list[Row]:
    """All rates and seeds of one way; a row is a model of five latents, whose gaps add up."""
    truth = torch.tensor(TRUTH, dtype=torch.float64).expand(len(RATES), seeds, -1)
    lr = torch.tensor(RATES, dtype=torch.float64)[:, None, None]
    path = descend(rule(name), truth, lr, steps, seed=0, start=start, cosine=schedule == "cosine")
    direct = name in CONSTRAINED and name != "abs"
    dead = path.slopes == 0
    gap, early = kl_from_truth(path, truth), kl_from_truth(path, truth, step=EARLY)
    if name == "none":  # nothing can be drawn with σ ≤ 0
        gap = gap.masked_fill(dead, torch.inf)
        early = early.masked_fill(path.log_scale[:EARLY][-1] < math.log(LOW) - 100, torch.inf)
    return [
        {"way": name, "start": start, "schedule": schedule, "lr": rate, "seed": seed}
        | {"gap": float(gap[i, seed].sum())}
        | {"early_gap": float(early[i, seed].sum())}
        | {"invalid_share": float(path.invalid[i, seed].mean()) if direct else 0.0}
        | {"ever_invalid": int((path.invalid[i, seed] > 0).sum()) if direct else 0}
        | {"dead": int(dead[i, seed].sum()), "latents": len(TRUTH)}
        for i, rate in enumerate(RATES)
        for seed in range(seeds)
    ]


def by_way(table: pd.DataFrame) -> pd.DataFrame:
    """By way, start, schedule and rate: median gap, share of latents ever invalid, share dead at the end."""
    latents = table["latents"]
    shares = table.assign(ever_invalid=table["ever_invalid"] / latents, dead=table["dead"] / latents)
    groups = shares.groupby(["way", "start", "schedule", "lr"])
    return groups.agg(
        gap=("gap", "median"),
        early_gap=("early_gap", "median"),
        ever_invalid=("ever_invalid", "mean"),
        dead=("dead", "mean"),
    )


def draw(results: Results) -> Figure:
    summary = by_way(results["constraints"]).reset_index()
    figure = Figure(figsize=(WIDTH, 10.4), layout="constrained")
    panels = figure.subplots(len(STARTS) * len(SCHEDULES), 2, sharex=True, sharey=True)
    dashes = ("-", "--", ":", "-.")
    rows_of_panels = [(schedule, start) for schedule in SCHEDULES for start in STARTS]
    for row, (schedule, start) in enumerate(rows_of_panels):
        here = summary[(summary["start"] == start) & (summary["schedule"] == schedule)]
        for axes, group, title in zip(panels[row], (MAPS, CONSTRAINED), ("a map", "σ itself"), strict=True):
            for i, (name, color) in enumerate(guide_colors(group).items()):
                rows = here[here["way"] == name]
                gap = rows["gap"].clip(1e-6, 1e6)
                axes.plot(rows["lr"], gap, dashes[i % 4], marker="o", ms=3, color=color, label=name)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{title}, from σ = {start:g}, {schedule} rate", fontsize=9)
            bare(axes)
    for axes in panels[0]:
        axes.legend(frameon=False, fontsize=7, loc="upper right", bbox_to_anchor=(1, 0.95), ncol=2)
    figure.supxlabel("learning rate at the start", fontsize=10)
    figure.supylabel("final gap to the exact ELBO of five latents  (nats; at the top: infinite)", fontsize=10)
    return figure
