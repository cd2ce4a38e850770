"""4. Precision: how wrong are log q, the ELBO and its gradient in float32 and under bfloat16 autocast?

One latent with mean of order 1, σ anywhere in a decade, prior N(0, 1) and an observed coin with log odds z.
The heads' outputs, the draw and the densities are computed in low precision, by the library and by torch's
own Normal, and then with the same noise in float64: the difference is the error of one draw.
"""

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import linear, logsigmoid

from evidence.experiment import Effort, Job, Results, Row
from evidence.plain import PLAIN
from pyro_vae import scales
from pyro_vae.guides import LogScaleNormal
from pyro_vae.plots.style import WIDTH, bare, guide_colors

SECONDS = 20.0
DRAWS = {"tiny": 500, "quick": 20_000, "full": 200_000}
DECADES = (-24, -20, -16, -12, -8, -6, -5, -4, -3, -2, -1, 0)
"""σ lies between 10^d and 10^(d+1)."""
PRECISIONS = ("float32", "bfloat16 autocast")
ARITHMETICS = ("LogScaleNormal", "torch Normal")
QUANTITIES = ("log q", "ELBO", "ELBO, analytic KL", "gradient", "gradient, analytic KL")
"""In nats, and nats per unit of raw."""


def jobs(effort: Effort) -> list[Job]:
    return [partial(errors, name, DRAWS[effort.name]) for name in PLAIN]


def errors(name: str, draws: int) -> list[Row]:
    """One map in both precisions and arithmetics."""
    rows: list[Row] = []
    for decade in DECADES:
        raw, loc, eps = population(name, decade, draws)
        truth = quantities(name, raw, loc, eps, "LogScaleNormal", "float64")
        for precision in PRECISIONS:
            for arithmetic in ARITHMETICS:
                about: Row = {"map": name, "decade": decade, "precision": precision, "arithmetic": arithmetic}
                found = quantities(name, raw, loc, eps, arithmetic, precision)
                for quantity, low, exact in zip(QUANTITIES, found, truth, strict=True):
                    rows.append(about | {"quantity": quantity} | summary(low, exact))
    return rows


def population(name: str, decade: int, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """raw, mean and noise in float64, of values that float32 holds: what is measured begins behind them."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    raw = scales.get(name).inv(10.0 ** (decade + uniform))
    normal = torch.randn(2, draws, generator=generator)
    return raw.float().double(), normal[0].double(), normal[1].double()


def quantities(
    name: str, raw: Tensor, loc: Tensor, eps: Tensor, arithmetic: str, precision: str
) -> list[Tensor]:
    """The five, of every draw, in float64."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16 autocast")
    one = torch.ones(1, 1, dtype=dtype)
    outputs = raw.to(dtype)[:, None].requires_grad_()
    with autocast:
        # linear layers are what autocast rounds; these are two heads whose answers we know
        head_raw, head_loc = linear(outputs, one)[:, 0], linear(loc.to(dtype)[:, None], one)[:, 0]
        q, z = drawn(name, head_raw, head_loc, eps, arithmetic)
        prior = Normal(torch.zeros((), dtype=z.dtype), torch.ones((), dtype=z.dtype))
        log_q, reconstruction = q.log_prob(z), logsigmoid(z)
        sampled = reconstruction + prior.log_prob(z) - log_q
        analytic = reconstruction - kl_divergence(q, prior)
        gradients = [
            torch.autograd.grad(elbo.sum(), outputs, retain_graph=True)[0][:, 0]
            for elbo in (sampled, analytic)
        ]
    return [x.detach().double() for x in (log_q, sampled, analytic, *gradients)]


def drawn(name: str, raw: Tensor, loc: Tensor, eps: Tensor, arithmetic: str) -> tuple[Normal, Tensor]:
    """q and a draw of it with the given noise."""
    if arithmetic == "torch Normal":
        scale = PLAIN[name](raw)
        return Normal(loc, scale, validate_args=False), loc + scale * eps.to(scale.dtype)
    wide = torch.promote_types(raw.dtype, torch.float32)
    q = LogScaleNormal(loc.to(wide), scales.get(name).log_scale(raw), validate_args=False)
    z = q.loc + q.scale * eps.to(wide)
    q._noise.remember(z, eps.to(wide), (q.loc, q.log_scale))  # as if the draw had been its own
    return q, z


def summary(low: Tensor, exact: Tensor) -> Row:
    """Bias and standard deviation of the error over the finite ones, and the share of the others."""
    error = low - exact
    finite = error.isfinite()
    kept = error[finite] if finite.any() else torch.full((2,), torch.nan, dtype=error.dtype)
    size = exact.square().mean().sqrt()
    return {
        "bias": float(kept.mean()),
        "sd": float(kept.std()),
        "rms": float(kept.square().mean().sqrt()),
    } | {
        "nonfinite": float((~finite).double().mean()),
        "exact_rms": float(size),
    }


def draw(results: Results) -> Figure:
    table = results["precision"]
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    colors = guide_colors(list(PLAIN))
    for column, precision in enumerate(PRECISIONS):
        for row, quantity in enumerate(("log q", "gradient, analytic KL")):
            axes = panels[row, column]
            part = table[(table["precision"] == precision) & (table["quantity"] == quantity)]
            for (name, arithmetic), rows in part.groupby(["map", "arithmetic"], sort=False):
                relative = rows["rms"] if row == 0 else rows["rms"] / rows["exact_rms"]
                shown = relative.mask(rows["nonfinite"] > 0.01).clip(lower=1e-9)
                dash = "-" if arithmetic == ARITHMETICS[0] else "--"
                axes.plot(10.0 ** rows["decade"], shown, dash, color=colors[str(name)], lw=1.1)
                lost = rows[rows["nonfinite"] > 0.01]
                axes.plot(
                    10.0 ** lost["decade"], np.full(len(lost), 30.0), "x", color=colors[str(name)], ms=4
                )
            axes.set(xscale="log", yscale="log", title=precision if row == 0 else "")
            bare(axes)
    panels[0, 0].set_ylabel("log q: rms error of a draw\n(nats; × not finite)")
    panels[1, 0].set_ylabel("gradient of the ELBO in raw:\nrms error / rms value")
    figure.supxlabel("σ of the guide (mean of order 1)", fontsize=10)
    lines = [panels[0, 0].plot([], [], color=color, label=name)[0] for name, color in colors.items()]
    lines += [
        panels[0, 0].plot([], [], dash, color="#666666", label=arithmetic)[0]
        for dash, arithmetic in zip(("-", "--"), ARITHMETICS, strict=True)
    ]
    figure.legend(handles=lines, loc="outside upper center", ncol=4, frameon=False)
    return figure
