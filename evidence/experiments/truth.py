"""2. Truth: how many steps until every σ is within 1% of the exact one, and who never arrives?

Posterior standard deviations from 0.001 to 10, all under one rate (:mod:`evidence.descent`); once from σ = 1,
the guides' default, and once from 0.001, so that no σ has to shrink.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from evidence.descent import Rule, arrival, descend
from evidence.experiment import Effort, Job, Results, Row
from pyro_vae import scales
from pyro_vae.plots.style import WIDTH, bare

SECONDS = 60.0
STEPS = {"tiny": 300, "quick": 2500, "full": 30_000}
SEEDS = {"tiny": 2, "quick": 3, "full": 10}
TRUTH = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STARTS = (1.0, 1e-3)
MAPS = {
    **{n: scales.get(n) for n in ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")},
    "softclip": scales.get("softclip", low=1e-4, high=100.0),
    "bounded": scales.get("bounded", low=1e-4, high=100.0),
}
"""Those with limits get limits that hold every truth."""


def jobs(effort: Effort) -> list[Job]:
    seeds, steps = SEEDS[effort.name], STEPS[effort.name]
    return [partial(steps_to_truth, name, start, seeds, steps) for start in STARTS for name in MAPS]


def steps_to_truth(name: str, start: float, seeds: int, steps: int) -> list[Row]:
    """All rates, seeds and truths of one map."""
    truth = torch.tensor(TRUTH, dtype=torch.float64).expand(len(RATES), seeds, -1)
    lr = torch.tensor(RATES, dtype=torch.float64)[:, None, None]
    path = descend(Rule(MAPS[name]), truth, lr, steps, seed=0, start=start)
    arrived = arrival(path, truth)
    return [
        {"map": name, "start": start, "lr": rate, "seed": seed, "truth": TRUTH[k], "limit": steps}
        | {"steps": float(arrived[i, seed, k])}
        for i, rate in enumerate(RATES)
        for seed in range(seeds)
        for k in range(len(TRUTH))
    ]


def all_arrived(table: pd.DataFrame) -> pd.DataFrame:
    """By map, start, rate and seed: steps until the last σ has arrived, infinite if one never does."""
    steps = table.assign(steps=table["steps"].fillna(np.inf))
    return steps.groupby(["map", "start", "lr", "seed"], sort=False)["steps"].max().reset_index()


def draw(results: Results) -> Figure:
    table = results["truth"][lambda rows: rows["start"] == STARTS[0]]
    limit = table["limit"].max()
    names = list(dict.fromkeys(table["map"]))
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    colors = [(0.85 * t, 0.45 + 0.2 * t, 0.75 - 0.75 * t) for t in np.linspace(0, 1, len(RATES))]
    for axes, name in zip(panels.flat, names, strict=True):
        for color, rate in zip(colors, RATES, strict=True):
            rows = table[(table["map"] == name) & (table["lr"] == rate)]
            steps = rows.assign(steps=rows["steps"].fillna(np.inf)).groupby("truth")["steps"].median()
            never = np.isinf(steps)
            axes.plot(steps.index, steps.where(~never), "o-", ms=3, lw=1, color=color, label=f"{rate:g}")
            axes.plot(steps.index[never], [2.2 * limit] * int(never.sum()), "x", ms=5, color=color)
        axes.set(xscale="log", yscale="log", title=name)
        axes.axhline(limit, color="#999999", lw=0.6)
        bare(axes)
    panels[0, 0].set_xticks([1e-3, 1e-1, 10])
    panels[0, 0].text(12, limit * 0.85, "end of the run", fontsize=7, color="#666666", ha="right", va="top")
    figure.supxlabel("exact posterior standard deviation (σ starts at 1)", fontsize=10)
    figure.supylabel("steps until within 1%  (× never)", fontsize=10)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, title="learning rate", loc="outside upper center", ncol=5, frameon=False)
    return figure
