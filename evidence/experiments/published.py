"""8. Against published numbers: VAE and IWAE of Burda, Grosse and Salakhutdinov (2016) on MNIST.

One stochastic layer, 784-200-200-50 and back, tanh, Glorot's weights, dynamic binarization, batches of 100,
σ = exp(raw) as there, and softplus beside it. The published runs took millions of steps; these take as many
as stated, with the rate brought to zero at the end, so they are a point on the way and not a reproduction.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae
from evidence.experiment import Effort, Job, Results, Row, float32
from pyro_vae.data import DynamicBinarization, binarize, load
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder
from pyro_vae.plots.style import COLORS, WIDTH, bare
from pyro_vae.svi import ELBO, IWAE

SECONDS = 130.0
STEPS = {"tiny": 2, "quick": 60, "full": 6_000}
TESTED = {"tiny": 20, "quick": 50, "full": 150}
"""Test images with 5000 draws; the ELBO is taken on all."""
DRAWS = {"tiny": 50, "quick": 500, "full": 5000}
HIDDEN, LATENT, BATCH, LR = 200, 50, 100, 1e-3
RUNS = (("IWAE", 5, "logstd"), ("VAE", 1, "logstd"), ("VAE", 1, "softplus"))

PUBLISHED = (
    ("Burda et al., paper", "VAE", 1, 86.76),
    ("Burda et al., paper", "IWAE", 5, 85.54),
    ("TF2 reproduction", "VAE", 1, 87.75),
    ("TF2 reproduction", "IWAE", 5, 85.50),
    ("xqding, PyTorch", "VAE", 1, 87.78),
    ("xqding, PyTorch", "IWAE", 5, 85.46),
    ("abdulfatir, 400,000 steps", "VAE", 1, 90.26),
    ("abdulfatir, 400,000 steps", "IWAE", 5, 88.49),
)
"""Test NLL in nats, MNIST with dynamic binarization, one stochastic layer (abdulfatir: binarization not
stated)."""

STEPS_TAKEN = {
    "Burda et al., paper": "9,800,000, batch 20",
    "abdulfatir, 400,000 steps": "400,000, batch 100",
}
"""Where known."""


def jobs(effort: Effort) -> list[Job]:
    if effort.mnist is None:
        return []
    return [partial(train_and_test, *run, effort.mnist, effort.name) for run in RUNS]


def train_and_test(objective: str, particles: int, scale: str, root: Path, effort: str) -> list[Row]:
    """One run and its test NLL."""
    steps = STEPS[effort]
    with float32():
        train = load("mnist", root=root, part="train", likelihood="normal").x
        test = binarize(load("mnist", root=root, part="test", likelihood="normal").x)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, guide = make_pair(scale, train)
        fitted = pyro_vae.fit(
            model,
            guide,
            DynamicBinarization(train),
            steps=steps,
            batch_size=BATCH,
            lr=LR,
            schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
            objective=ELBO() if objective == "VAE" else IWAE(particles),
            progress=False,
        )
        measured = test_nll(model, guide, test, TESTED[effort], DRAWS[effort])
        units = pyro_vae.active_units(model, guide, test[:500], draws=30)
    return [
        {"source": "here", "objective": objective, "particles": particles, "map": scale, "steps": steps}
        | measured
        | {"active_units": units.attrs["active_units"], "steps_per_second": round(fitted.steps_per_second)}
    ]


def make_pair(scale: str, train: Any) -> tuple[VAE, AmortizedNormal]:
    """The paper's architecture; the decoder's output bias starts at the log odds of the pixels' means."""
    encoder = MLPEncoder(784, [HIDDEN, HIDDEN], activation="tanh")
    decoder = MLPDecoder(LATENT, [HIDDEN, HIDDEN], 784, activation="tanh")
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    decoder.set_output_bias(torch.logit(torch.from_numpy(train.mean(0)).clamp(0.001, 0.999)))
    model = VAE(decoder, LATENT, "bernoulli")
    return model, AmortizedNormal(model, encoder, scale=scale)


def test_nll(model: VAE, guide: AmortizedNormal, test: Any, tested: int, draws: int) -> Row:
    """−log p(x) of the whole test set: its −ELBO, minus what many draws gain over the ELBO on a part.

    Images differ by tens of nats in log p(x) and by few in the gain, so this is many times more precise than
    the part's own mean.
    """
    rows = np.random.default_rng(0).permutation(len(test))[:tested]
    everywhere = pyro_vae.diagnose(model, guide, test if tested > 100 else test[:200], draws=30)["elbo"]
    found = pyro_vae.diagnose(model, guide, test[rows], draws=draws)
    gain = found["log_evidence"] - found["elbo"]
    return {
        "neg_elbo": -float(everywhere.mean()),
        "nll": -float(everywhere.mean() + gain.mean()),
        "nll_se": float(gain.std(ddof=1) / np.sqrt(tested)),
        "khat_bad": float((found["khat"] > found.attrs["khat_threshold"]).mean()),
        "draws": draws,
        "images": tested,
    }


def draw(results: Results) -> Figure:
    table = results["published"]
    if "long" in results:
        long = results["long"]
        table = pd.concat([long.assign(objective=long["run"].str.split("-").str[0]), table])
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    lines = [
        (f"here, {r['steps']:,} steps, {r['map']}", r["objective"], r["nll"]) for _, r in table.iterrows()
    ]
    lines += [(source, objective, nll) for source, objective, _, nll in PUBLISHED]
    labels = list(dict.fromkeys(label for label, _, _ in lines))
    for color, objective in zip(COLORS, ("VAE", "IWAE"), strict=False):
        points = [(nll, labels.index(label)) for label, kind, nll in lines if kind == objective]
        name = objective if objective == "VAE" else "IWAE, k = 5"
        axes.plot(*zip(*points, strict=True), "o", color=color, label=name)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("test −log p(x)  (nats per image; less is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    bare(axes)
    return figure
