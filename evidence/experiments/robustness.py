"""3. Robustness: which learning rates does a guide survive, and is it the map or the arithmetic?

Short fits of the digits' VAE, every map under every rate; the same with torch's own Normal in place of
``LogScaleNormal``. A fit has failed if it was stopped (three steps in a row not finite) or if its held-out
evidence is below that of the best model without latents.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import pyro_vae
from evidence.digits import load_digits, make_pair
from evidence.experiment import Effort, Job, Results, Row, float32
from evidence.plain import PLAIN
from pyro_vae import scales
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.plots.style import WIDTH, bare, guide_colors
from pyro_vae.svi import Fit, NonFiniteError

SECONDS = 240.0
STEPS = {"tiny": 3, "quick": 100, "full": 400}
SEEDS = {"tiny": 2, "quick": 2, "full": 10}
RATES = {
    "tiny": (1e-2,),
    "quick": (1e-2, 1e-1),
    "full": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
}
HELD_OUT, DRAWS = 100, 100
LIBRARY, TORCH = "LogScaleNormal", "torch Normal"


def jobs(effort: Effort) -> list[Job]:
    """Rates from the middle outwards, so that what may be cut short is the extremes."""
    rates = sorted(RATES[effort.name], key=lambda rate: abs(np.log10(rate) + 2))
    kinds = [(name, LIBRARY) for name in scales.names()] + [(name, TORCH) for name in PLAIN]
    sizes = (SEEDS[effort.name], STEPS[effort.name])
    return [partial(fit_seeds, name, arithmetic, lr, *sizes) for lr in rates for name, arithmetic in kinds]


def fit_seeds(name: str, arithmetic: str, lr: float, seeds: int, steps: int) -> list[Row]:
    """All seeds of one guide at one rate."""
    with float32():
        make = partial(make_pair, name, plain=arithmetic == TORCH)
        options = {"steps": steps, "lr": lr, "progress": False}
        train = load_digits().train
        try:
            fits: list[Fit | None] = list(pyro_vae.sweep(make, range(seeds), train, **options))
        except NonFiniteError:  # one of them; which, and how the others end, tells each by itself
            fits = [_fit_alone(make, seed, options) for seed in range(seeds)]
        about: Row = {"map": name, "arithmetic": arithmetic, "lr": lr}
        return [about | {"seed": seed} | _measured(fitted) for seed, fitted in enumerate(fits)]


def _fit_alone(make: Callable[[], tuple[VAE, AmortizedNormal]], seed: int, options: Row) -> Fit | None:
    """A fit, or None where it was stopped."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, guide = make()
    try:
        return pyro_vae.fit(model, guide, load_digits().train, seed=seed, **options)
    except NonFiniteError:
        return None


def _measured(fitted: Fit | None) -> Row:
    digits = load_digits()
    baseline = digits.without_latents
    if fitted is None:
        return {"stopped": 1, "nonfinite": np.nan, "elbo": np.nan, "evidence": np.nan} | {
            "khat_bad": np.nan,
            "failed": 1,
            "baseline": baseline,
        }
    found = pyro_vae.diagnose(fitted.model, fitted.guide, digits.held_out[:HELD_OUT], draws=DRAWS)
    evidence = float(found["log_evidence"].mean())
    return {
        "stopped": 0,
        "nonfinite": float(fitted.history["nonfinite"].sum()),
        "elbo": float(found["elbo"].mean()),
        "evidence": evidence,
        "khat_bad": float((found["khat"] > found.attrs["khat_threshold"]).mean()),
        "failed": int(not evidence > baseline),
        "baseline": baseline,
    }


def draw(results: Results) -> Figure:
    table = results["robustness"]
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    colors = guide_colors(scales.names()[:6])
    others = {"bounded": "-", "softclip": "--", "clamp": ":", "abs": "-."}
    for column, (arithmetic, group) in enumerate(table.groupby("arithmetic", sort=False)):
        top, bottom = panels[:, column]
        for name in (*others, *colors):
            rows = group[group["map"] == name]
            look: dict[str, Any] = {
                "color": colors.get(name, "#999999"),
                "ls": others.get(name, "-"),
                "ms": 3,
            }
            by_rate = rows.groupby("lr")
            middle = by_rate["evidence"].median()
            top.plot(middle.index, middle.clip(lower=-260), marker="o", lw=1.1, label=name, **look)
            share = by_rate["failed"].mean()
            bottom.plot(share.index, share, marker="o", lw=1.1, **look)
        top.axhline(table["baseline"].iloc[0], color="#999999", lw=0.7)
        top.set(title=arithmetic, xscale="log")
        for axes in (top, bottom):
            bare(axes)
    panels[0, 0].text(
        table["lr"].min(),
        table["baseline"].iloc[0] + 2,
        "no latents",
        fontsize=7,
        color="#666666",
        va="bottom",
    )
    panels[0, 0].set_ylabel("median held-out evidence\n(nats per image)")
    panels[1, 0].set_ylabel("share of failed fits")
    figure.supxlabel("learning rate", fontsize=10)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncol=5, frameon=False
    )
    return figure


def failed_share(table: pd.DataFrame) -> pd.DataFrame:
    """Share of failed fits by guide (map, arithmetic) and rate."""
    return table.groupby(["map", "arithmetic", "lr"], sort=False)["failed"].mean().unstack("lr")
