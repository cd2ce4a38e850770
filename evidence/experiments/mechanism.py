"""7. Mechanism: do slope, gradient signal-to-noise and Fisher information explain what 2 and 3 found?

``digits``: along a fit of the digits' VAE under log variance, every map is asked at the σ that the fit
has reached: slope, signal-to-noise of a one-draw gradient of raw, and Fisher information of raw, which is 2
slope² for a Normal. ``speed``: in the setting of experiment 2, steps until σ has come from 1 to the truth,
against two predictions: by the rate, that Adam moves raw by one learning rate per step; and by the memory,
that Adam divides by the large gradients of the beginning, which it forgets at β₂ per step
(:func:`steps_by_memory`).
"""

import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae
from evidence.descent import START, Rule, arrival, descend
from evidence.digits import load_digits, make_pair
from evidence.experiment import Effort, Job, Results, Row, float32
from evidence.experiments.truth import MAPS as WITH_LIMITS
from pyro_vae import scales
from pyro_vae.plots.style import COLORS, WIDTH, bare, guide_colors
from pyro_vae.svi import EpochRecord

SECONDS = 40.0
EPOCHS = {"tiny": 1, "quick": 4, "full": 60}
STEPS = {"tiny": 300, "quick": 2500, "full": 30_000}
MAPS = ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")
WATCHED, DRAWS = 64, 64
MEMORIES = (0.9, 0.99, 0.999)
"""β₂ of Adam."""
SPEED_RATES = (1e-3, 1e-2, 1e-1)
SPEED_TRUTH = (1e-3, 1e-2, 1e-1)


def jobs(effort: Effort) -> list[Job]:
    speed = [
        partial(speeds, name, beta2, STEPS[effort.name])
        for beta2 in MEMORIES
        for name in (*MAPS[:-1], "sigma")
    ]
    return [partial(along_a_fit, EPOCHS[effort.name]), *speed]


def along_a_fit(epochs: int) -> list[Row]:
    """What every map would see at the σ of a fit, after epochs 1, 2, 4, …"""
    with float32():
        digits = load_digits()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, guide = make_pair("logvar")
        rows: list[Row] = []
        x = digits.train[:WATCHED]

        def note(record: EpochRecord) -> None:
            if (record.epoch + 1).bit_count() == 1 or record.epoch + 1 == epochs:
                with torch.no_grad():
                    found = guide.local_parameters(x)
                loc, log_scale = found["loc"].double(), found["log_scale"].double()
                with torch.random.fork_rng():
                    torch.manual_seed(record.epoch)
                    signal, noise = gradient_of_log_scale(model, x, loc, log_scale)
                rows.extend(seen_by_maps(record.step, log_scale, signal, noise))

        pyro_vae.fit(model, guide, digits.train, epochs=epochs, lr=2e-3, progress=False, callbacks=[note])
    return rows


def gradient_of_log_scale(
    model: torch.nn.Module, x: Tensor, loc: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, over draws, of the one-draw ELBO gradient in log σ; (images, latents)."""
    decode = getattr(model, "decode")  # noqa: B009 - torch.nn.Module does not declare it
    draws = []
    for _ in range(DRAWS):
        leaf = log_scale.clone().requires_grad_()
        z = loc + leaf.exp() * torch.randn_like(loc)
        elbo = decode(z.float()).log_prob(x).sum() - (0.5 * (2 * leaf).expm1() - leaf).sum()
        draws.append(torch.autograd.grad(elbo, leaf)[0])
    stacked = torch.stack(draws)
    return stacked.mean(0), stacked.std(0)


def seen_by_maps(step: int, log_scale: Tensor, signal: Tensor, noise: Tensor) -> list[Row]:
    """The same gradient through each map's slope."""
    rows: list[Row] = []
    for name in MAPS:
        scale_map = scales.get(name)
        slope = scale_map.slope(scale_map.inv(log_scale.exp()))
        ratio = (slope * signal).abs() / (slope.abs() * noise)
        rows.append(
            {"part": "digits", "map": name, "step": step, "scale": float(log_scale.mean().exp())}
            | {"slope": float(slope.median()), "slope_low": float(slope.quantile(0.05))}
            | {"slope_high": float(slope.quantile(0.95)), "signal_to_noise": float(ratio.median())}
            | {"fisher": float((2 * slope.square()).median())}
        )
    return rows


def speeds(name: str, beta2: float, steps: int) -> list[Row]:
    """Measured and predicted steps from σ = 1 to narrower truths; ``sigma`` is σ itself, without a map."""
    scale_map = scales.Clamp(low=1e-300) if name == "sigma" else WITH_LIMITS[name]
    truth = torch.tensor(SPEED_TRUTH, dtype=torch.float64).expand(len(SPEED_RATES), 5, -1)
    lr = torch.tensor(SPEED_RATES, dtype=torch.float64)[:, None, None]
    path = descend(Rule(scale_map), truth, lr, steps, seed=1, beta2=beta2)
    arrived = arrival(path, truth).nan_to_num(nan=math.inf).median(1).values
    rows: list[Row] = []
    for i, rate in enumerate(SPEED_RATES):
        for k, target in enumerate(SPEED_TRUTH):
            start, end = scale_map.inv(torch.tensor([START, target], dtype=torch.float64)).tolist()
            rows.append(
                {"part": "speed", "map": name, "beta2": beta2, "lr": rate, "truth": target}
                | {"steps": float(arrived[i, k]), "by_rate": abs(end - start) / rate}
                | {"by_memory": steps_by_memory(scale_map, target, rate, beta2)}
            )
    return rows


def steps_by_memory(scale_map: scales.ScaleMap, truth: float, lr: float, beta2: float) -> float:
    r"""Steps of Adam from σ = 1 to within 1% of a narrower truth, if its denominator is the size of the first
    gradient, forgotten at the rate of β₂.

    With g the gradient of raw and τ = 1/(1 − β₂), raw moves by :math:`\mathrm{lr}\,(g/g_0)\,e^{t/2τ}` at
    step t, so that :math:`2τ\,(e^{t/2τ} - 1) = \mathrm{lr}^{-1} \int g_0/g\;\mathrm{d\,raw}`. Under a log
    map g falls like σ²: for far truths that makes t grow by 4τ for each e-fold of σ, whatever the rate.
    """
    sigma = torch.logspace(math.log10(START), math.log10(1.01 * truth), 4001, dtype=torch.float64)
    raw = scale_map.inv(sigma)
    gradient = scale_map.slope(raw) * ((sigma / truth).square() - 1)
    unhurried = float(torch.trapezoid(gradient[0] / gradient, raw).abs()) / lr
    memory = 2 / (1 - beta2)
    return memory * math.log1p(unhurried / memory)


def draw(results: Results) -> Figure:
    table = results["mechanism"]
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, 2)
    colors = guide_colors(MAPS)
    digits = table[table["part"] == "digits"]
    for name, rows in digits.groupby("map", sort=False):
        for axes, column in ((panels[0, 0], "slope"), (panels[0, 1], "signal_to_noise")):
            dash = "--" if name in ("logstd", "explinear") else "-"
            axes.plot(rows["step"], rows[column], dash, color=colors[str(name)], label=str(name))
    panels[0, 0].set(ylabel="slope  d log σ / d raw", xlabel="step of the fit", xscale="log", ylim=(0, None))
    panels[0, 1].set(ylabel="signal / noise of the gradient", xlabel="step of the fit", xscale="log")
    panels[0, 1].set_ylim(0, 1.2 * digits["signal_to_noise"].max())
    speed = table[(table["part"] == "speed") & np.isfinite(table["steps"])]
    speed = speed.assign(both=speed[["by_rate", "by_memory"]].max(axis=1))
    for axes, column, label in (
        (panels[1, 0], "by_rate", "by the rate"),
        (panels[1, 1], "both", "by rate and memory"),
    ):
        for color, beta2 in zip(COLORS, MEMORIES, strict=False):
            rows = speed[speed["beta2"] == beta2]
            axes.plot(rows[column], rows["steps"], "o", ms=3, alpha=0.6, color=color, label=f"β₂ = {beta2:g}")
        axes.plot([50, 3e4], [50, 3e4], color="#999999", lw=0.7)
        axes.set(xscale="log", yscale="log", xlabel=f"predicted steps, {label}", ylabel="measured steps")
    panels[1, 1].legend(frameon=False, fontsize=8)
    for axes in panels.flat:
        bare(axes)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncol=6,
        frameon=False,
        fontsize=8,
    )
    return figure


def measured_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Measured steps from σ = 1 to 0.01 by map and rate, a column for each β₂."""
    speed = table[(table["part"] == "speed") & (table["truth"] == 1e-2)]
    return speed.pivot(index=["map", "lr"], columns="beta2", values="steps")
