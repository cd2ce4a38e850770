"""6. Real data: does the map change the held-out evidence, and the two gaps of inference?

Each map fits a VAE of its own, from the same weights, batches and noise; differences to log variance are
paired over seeds. Digits (Binomial) and breast cancer (Normal) stop early on a validation part, because their
encoders overfit; MNIST (dynamic binarization) takes a fixed number of steps. Evidence is estimated with the
best q of each held-out observation, not with the encoder's, whose k̂ is bad nearly everywhere: both k̂ stand
beside it.
"""

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import pyro_vae
from evidence.experiment import Effort, Job, Results, Row, float32
from evidence.statistics import differences
from pyro_vae.data import DataSet, DynamicBinarization, binarize, load, split, standardize
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.plots.style import WIDTH, bare, guide_colors

SECONDS = 600.0
GUIDES = {
    **{
        name: (name, 1.0) for name in ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")
    },
    "logvar from 0.1": ("logvar", 0.1),
}
"""Scale map and σ at the start; the last is what experiment 2 suggests."""
SEEDS = {"tiny": 2, "quick": 2, "full": 5}
DRAWS = 500


@dataclass(frozen=True)
class Protocol:
    """How a data set is fitted; ``steps`` by effort are the most that a fit takes."""

    latent: int
    hidden: int
    steps: dict[str, int]
    patience: int | None
    held_out: int
    examined: int
    """Held-out observations whose evidence and gaps are estimated."""


PROTOCOLS = {
    "digits": Protocol(8, 128, {"tiny": 4, "quick": 300, "full": 2500}, 10, 359, 60),
    "breast cancer": Protocol(4, 64, {"tiny": 4, "quick": 300, "full": 2500}, 20, 114, 60),
    "mnist": Protocol(20, 200, {"tiny": 2, "quick": 50, "full": 1500}, None, 40, 40),
}
LR = 2e-3
BATCH = 64


def jobs(effort: Effort) -> list[Job]:
    """Seed by seed, so that the maps are at every moment equally far."""
    names = [name for name in PROTOCOLS if name != "mnist" or effort.mnist is not None]
    return [
        partial(fit_and_measure, name, guide, seed, effort)
        for seed in range(SEEDS[effort.name])
        for name in names
        for guide in GUIDES
    ]


@functools.cache
def parts(name: str, mnist: Path | None) -> tuple[DataSet, DataSet, DataSet]:
    """Training, validation and held-out data; MNIST's training images are intensities."""
    if name == "mnist":
        images = [load("mnist", root=mnist, part=p, likelihood="normal") for p in ("train", "test")]
        held_out = DataSet("mnist", binarize(images[1].x), likelihood="bernoulli")
        return images[0], held_out, split(held_out, PROTOCOLS[name].held_out)[1]
    if name == "digits":
        everything = load("digits")
    else:
        from sklearn.datasets import load_breast_cancer

        everything = DataSet(name, np.asarray(load_breast_cancer().data, dtype=np.float32))
    rest, held_out = split(everything, PROTOCOLS[name].held_out, seed=0)
    train, validation = split(rest, 0.15, seed=1)
    if everything.likelihood != "normal":
        return train, validation, held_out
    return standardize(train), standardize(validation, like=train), standardize(held_out, like=train)


def fit_and_measure(name: str, kind: str, seed: int, effort: Effort) -> list[Row]:
    """One fit."""
    protocol = PROTOCOLS[name]
    with float32():
        train, validation, held_out = parts(name, effort.mnist)
        model, guide = make_pair(protocol, held_out, *GUIDES[kind], seed, torch.from_numpy(train.x))
        options: dict[str, Any] = {"steps": protocol.steps[effort.name], "lr": LR, "seed": seed}
        data: Any = train.x
        if name == "mnist":
            data = binarized_batches(train.x, 128)
        else:
            options |= {"validation": validation.x, "patience": protocol.patience, "batch_size": BATCH}
        fitted = pyro_vae.fit(model, guide, data, progress=False, **options)
        x, tiny = held_out.x[: protocol.examined], effort.name == "tiny"
        sizes: dict[str, Any] = {"steps": 8, "particles": 2} if tiny else {"steps": 200, "particles": 8}
        found = pyro_vae.inference_gaps(model, guide, x, draws=100 if tiny else DRAWS, seed=seed, **sizes)
    threshold = found.attrs["khat_threshold"]
    return [
        {"data": name, "map": kind, "seed": seed, "steps": fitted.history.sizes["step"]}
        | {measure: float(found[measure].mean()) for measure in ("elbo", "elbo_local", "log_evidence")}
        | {gap: float(found[f"{gap}_gap"].mean()) for gap in ("approximation", "amortization")}
        | {"khat_bad": float((found["khat"] > threshold).mean())}
        | {"khat_local_bad": float((found["khat_local"] > threshold).mean()), "observations": len(x)}
    ]


def make_pair(
    protocol: Protocol, held_out: DataSet, scale: str, init_scale: float, seed: int, train: torch.Tensor
) -> tuple[VAE, AmortizedNormal]:
    """A fresh VAE and guide; the same weights for every map of a seed."""
    features = held_out.x.shape[1]
    likelihood = likelihoods.get(held_out.likelihood, **held_out.likelihood_args)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = MLPDecoder(protocol.latent, [protocol.hidden], features * likelihood.outputs)
        encoder = MLPEncoder(features, [protocol.hidden])
    model = VAE(decoder, protocol.latent, likelihood)
    if held_out.likelihood != "bernoulli":  # which checks for 0 and 1, and intensities are neither
        model.init_output(train)
    return model, AmortizedNormal(model, encoder, scale=scale, init_scale=init_scale)


def binarized_batches(intensities: Any, size: int) -> "DataLoader[torch.Tensor]":
    """Batches of a data set that is drawn anew at every access, a batch at a time."""
    images = DynamicBinarization(intensities)
    order = BatchSampler(RandomSampler(images), size, drop_last=False)
    return DataLoader(images, sampler=order, batch_size=None)


def draw(results: Results) -> Figure:
    table = results["real_data"]
    names = list(dict.fromkeys(table["data"]))
    figure = Figure(figsize=(WIDTH, 1.0 + 1.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    colors = guide_colors(list(GUIDES))
    for row, name in enumerate(names):
        part = table[table["data"] == name]
        left, right = panels[row]
        found = differences(part, "log_evidence")
        for i, (scale, line) in enumerate(found.iterrows()):
            error = [[line["difference"] - line["low"]], [line["high"] - line["difference"]]]
            left.errorbar(line["difference"], i, xerr=error, fmt="o", ms=4, color=colors[str(scale)])
        left.axvline(0, color="#999999", lw=0.7)
        left.set_yticks(range(len(found)), list(found.index))
        left.set_ylim(len(found) - 0.5, -0.5)
        left.set_title(f"{name}, {part['seed'].nunique()} seeds", fontsize=10)
        mean = part.groupby("map", sort=False)[["approximation", "amortization"]].mean()
        right.barh(mean.index, mean["approximation"], color="#9fb8cc", label="approximation gap")
        right.barh(
            mean.index,
            mean["amortization"],
            left=mean["approximation"],
            color="#d9a066",
            label="amortization gap",
        )
        right.invert_yaxis()
        for axes in (left, right):
            bare(axes)
            axes.tick_params(labelsize=8)
    panels[-1, 0].set_xlabel("held-out evidence minus logvar's\n(nats per observation, joint 95% intervals)")
    panels[-1, 1].set_xlabel("evidence − ELBO\n(nats per observation)")
    figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside upper right", ncol=2, frameon=False)
    return figure


def table_of_differences(table: pd.DataFrame) -> pd.DataFrame:
    """All data sets together."""
    found = {name: differences(part, "log_evidence") for name, part in table.groupby("data", sort=False)}
    return pd.concat(found, names=["data", "map"])
