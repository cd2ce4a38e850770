"""6. Real data: does the map change the held-out evidence, or what the guide lacks of it?

Each map fits a VAE of its own, from the same weights, batches and noise; differences to log variance are
paired over seeds. The rate goes to zero by a cosine, so that the loss has settled at the end. Evidence is by
refined guides, whose k̂ passes nearly everywhere, so that it is that of the model and not of its encoder; what
the encoder lacks of it stands beside it. There are seeds enough to *exclude* differences beyond a margin that
was fixed beforehand: two maps are called equivalent where the whole joint 95% interval lies within it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae
from evidence.experiment import Effort, Job, Results, Row, float32
from evidence.statistics import differences
from pyro_vae.data import DataSet, DynamicBinarization, binarize, load, split, standardize
from pyro_vae.plots.style import WIDTH, bare, guide_colors
from pyro_vae.study import StudyConfig
from pyro_vae.study.pairs import make_pair
from pyro_vae.svi import Fit

SECONDS = 360.0
DRAWS = 300


@dataclass(frozen=True)
class Way:
    """A scale map, and what experiments 2 and 7 recommend beside it."""

    scale: str
    init_scale: float = 1.0
    optimizer: Callable[..., Optimizer] | None = None


GUIDES = {
    **{name: Way(name) for name in ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")},
    "logvar from 0.1": Way("logvar", init_scale=0.1),
    "logvar, β₂ = 0.99": Way("logvar", optimizer=partial(Adam, betas=(0.9, 0.99))),
}


@dataclass(frozen=True)
class Protocol:
    """How a data set is fitted: what :class:`~pyro_vae.study.StudyConfig` says, and for how long."""

    config: StudyConfig
    steps: dict[str, int]
    seeds: dict[str, int]
    margin: float
    """The largest difference of evidence, in nats per observation, that would not matter."""
    held_out: int
    guides: tuple[str, ...] = tuple(GUIDES)


PROTOCOLS = {
    "digits": Protocol(
        StudyConfig(),
        {"tiny": 4, "quick": 300, "full": 2_300},
        {"tiny": 2, "quick": 2, "full": 24},
        0.5,
        359,
    ),
    "breast cancer": Protocol(
        StudyConfig(latent_dim=4, hidden=(64,), lr=2e-3),
        {"tiny": 4, "quick": 300, "full": 800},
        {"tiny": 2, "quick": 2, "full": 40},
        0.2,
        114,
    ),
    "mnist": Protocol(
        StudyConfig(latent_dim=20, hidden=(200,), lr=2e-3, batch_size=128, activation="relu"),
        {"tiny": 2, "quick": 50, "full": 6_000},
        {"tiny": 2, "quick": 2, "full": 12},
        0.5,
        500,
        ("logvar", "logstd", "softplus", "logvar, β₂ = 0.99"),
    ),
}


def jobs(effort: Effort) -> list[Job]:
    """Seed by seed, so that the maps are at every moment equally far."""
    names = [name for name in PROTOCOLS if name != "mnist" or effort.mnist is not None]
    most = max(PROTOCOLS[name].seeds[effort.name] for name in names)
    return [
        partial(fit_and_measure, name, guide, seed, effort)
        for seed in range(most)
        for name in names
        if seed < PROTOCOLS[name].seeds[effort.name]
        for guide in PROTOCOLS[name].guides
    ]


@functools.cache
def parts(name: str, mnist: Path | None) -> tuple[DataSet, DataSet]:
    """Training and held-out data; MNIST's training images are intensities."""
    if name == "mnist":
        images = [load("mnist", root=mnist, part=p, likelihood="normal") for p in ("train", "test")]
        held_out = DataSet("mnist", binarize(images[1].x), likelihood="bernoulli")
        return images[0], split(held_out, PROTOCOLS[name].held_out)[1]
    if name == "digits":
        return split(load("digits"), PROTOCOLS[name].held_out, seed=0)
    from sklearn.datasets import load_breast_cancer

    everything = DataSet(name, np.asarray(load_breast_cancer().data, dtype=np.float32))
    train, held_out = split(everything, PROTOCOLS[name].held_out, seed=0)
    return standardize(train), standardize(held_out, like=train)


def fitted_pair(name: str, way: Way, seed: int, effort: Effort) -> tuple[Fit, DataSet]:
    """A fit, and the data that were held out; the same weights for every map of a seed."""
    protocol = PROTOCOLS[name]
    train, held_out = parts(name, effort.mnist)
    settings = protocol.config
    start = train if name != "mnist" else DataSet(name, binarize(train.x), likelihood="bernoulli")
    like = replace(settings, scales=(way.scale,), init_scale=way.init_scale)
    model, guide = make_pair(like, start, way.scale, seed)
    steps = protocol.steps[effort.name]
    fitted = pyro_vae.fit(
        model,
        guide,
        DynamicBinarization(train.x) if name == "mnist" else train.x,
        steps=steps,
        batch_size=settings.batch_size,
        lr=settings.lr,
        optimizer=way.optimizer,
        schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        seed=seed,
        progress=False,
    )
    return fitted, held_out


def fit_and_measure(name: str, kind: str, seed: int, effort: Effort) -> list[Row]:
    """One fit."""
    with float32():
        fitted, held_out = fitted_pair(name, GUIDES[kind], seed, effort)
        model, guide, steps = fitted.model, fitted.guide, PROTOCOLS[name].steps[effort.name]
        x, draws = held_out.x, 100 if effort.name == "tiny" else DRAWS
        if effort.name == "tiny":
            x = x[:20]
        by_guide = pyro_vae.diagnose(model, guide, x, draws=draws, seed=seed)
        found = pyro_vae.diagnose(model, guide, x, draws=draws, seed=seed, refined=True)
    row: Row = {"data": name, "map": kind, "seed": seed, "steps": steps, "observations": len(x)}
    row |= {"elbo": float(by_guide["elbo"].mean()), "log_evidence": float(found["log_evidence"].mean())}
    row |= {"gap": row["log_evidence"] - row["elbo"]}
    for column, measured in (("khat_bad", by_guide), ("khat_refined_bad", found)):
        row[column] = float((measured["khat"] > measured.attrs["khat_threshold"]).mean())
    return [row]


def draw(results: Results) -> Figure:
    table = results["real_data"]
    names = list(dict.fromkeys(table["data"]))
    heights = [len(PROTOCOLS[name].guides) for name in names]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.24 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, height_ratios=heights)
    colors = guide_colors(list(GUIDES))
    for row, name in enumerate(names):
        part = table[table["data"] == name]
        left, right = panels[row]
        found, margin = differences(part, "log_evidence"), PROTOCOLS[name].margin
        left.axvspan(-margin, margin, color="#eeeeee", zorder=0)
        for i, (kind, line) in enumerate(found.iterrows()):
            error = [[line["difference"] - line["low"]], [line["high"] - line["difference"]]]
            left.errorbar(line["difference"], i, xerr=error, fmt="o", ms=4, color=colors[str(kind)])
        left.axvline(0, color="#999999", lw=0.7)
        left.set_yticks(range(len(found)), list(found.index))
        left.set_ylim(len(found) - 0.5, -0.5)
        left.set_title(f"{name}, {part['seed'].nunique()} seeds", fontsize=10)
        gap = part.groupby("map", sort=False)["gap"].mean()
        right.barh(gap.index, gap, color="#d9a066")
        right.invert_yaxis()
        for axes in (left, right):
            bare(axes)
            axes.tick_params(labelsize=8)
    panels[-1, 0].set_xlabel(
        "held-out evidence minus logvar's; grey: the margin\n(nats per observation, joint 95% intervals)"
    )
    panels[-1, 1].set_xlabel("evidence − the encoder's ELBO\n(nats per observation)")
    return figure


def table_of_differences(table: pd.DataFrame) -> pd.DataFrame:
    """All data sets together, each with its margin and whether differences beyond it are excluded."""
    parts = []
    for name, part in table.groupby("data", sort=False):
        found: Any = differences(part, "log_evidence")
        margin = PROTOCOLS[str(name)].margin
        within = (found["low"] > -margin) & (found["high"] < margin)
        parts.append(found.assign(data=name, margin=margin, equivalent=within))
    together: pd.DataFrame = pd.concat(parts).rename_axis("map").reset_index()
    return together.set_index(["data", "map"])
