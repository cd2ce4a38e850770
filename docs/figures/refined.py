"""Draws docs/images/refined.png: k̂ and coverage of an encoder's posteriors, before and after refinement.

python docs/figures/refined.py
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

import pyro_vae
from pyro_vae import data
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

PICTURE = Path(__file__).parent.parent / "images" / "refined.png"
ENCODER, REFINED, EVIDENCE = "#d55e00", "#0072b2", "#009e73"  # told apart by most eyes
LEVELS = np.array([0.5, 0.8, 0.9, 0.95])


def fitted() -> tuple[pyro_vae.Fit, torch.Tensor]:
    """The main job's fit of the handwritten digits, seed 0, and its held-out images."""
    train, held_out = data.split(data.load("digits"), 0.2, seed=0)
    x = torch.as_tensor(train.x)
    torch.manual_seed(0)
    model = VAE(MLPDecoder(8, [128, 128], 64), 8, likelihoods.Binomial(16))
    model.init_output(x)
    guide = AmortizedNormal(model, MLPEncoder(64, [128, 128]))
    fit = pyro_vae.fit(model, guide, x, epochs=100, batch_size=64, lr=2e-3, progress=False)
    return fit, torch.as_tensor(held_out.x)


def draw_khat(axis: Axes, khat: dict[str, np.ndarray], limit: float) -> None:
    for (name, values), colour in zip(khat.items(), (ENCODER, REFINED, EVIDENCE), strict=True):
        axis.step(
            np.sort(values), np.linspace(0, 1, len(values)), color=colour, lw=2, label=name, where="post"
        )
    axis.axvline(limit, color="0.4", lw=1, ls="--")
    axis.text(limit, 0.02, " not believed →", color="0.3")
    axis.set(xlim=(-0.3, 2.2), ylim=(0, 1), xlabel="k̂", ylabel="share of the images with at most this k̂")
    axis.legend(loc="upper right", frameon=False, bbox_to_anchor=(1, 0.99))


def draw_coverage(axis: Axes, coverage: dict[str, np.ndarray]) -> None:
    axis.plot(LEVELS, LEVELS, color="0.4", lw=1, ls="--")
    for (name, values), colour in zip(coverage.items(), (ENCODER, REFINED), strict=True):
        axis.plot(LEVELS, values, color=colour, lw=2, marker="o", label=name)
    axis.set(xlim=(0.45, 1), ylim=(0, 1), xlabel="central interval", ylabel="share that holds the truth")
    axis.legend(loc="lower right", frameon=False)


def main() -> None:
    fit, x = fitted()
    refined = fit.refined()
    reports = {
        "encoder": pyro_vae.diagnose(fit.model, fit.guide, x),
        "refined guide": pyro_vae.diagnose(fit.model, refined, x),
        "refined evidence": pyro_vae.diagnose(fit.model, fit.guide, x, refined=True),
    }
    coverage = {
        name: pyro_vae.calibrate(fit.model, guide, n=1000, data=x)["coverage"].mean("latent").values
        for name, guide in (("encoder", fit.guide), ("refined guide", refined))
    }
    for name, report in reports.items():
        bad = float((report["khat"] > report.attrs["khat_threshold"]).mean())
        elbo, evidence = (float(report[column].mean()) for column in ("elbo", "log_evidence"))
        good = float((report["khat"] <= 0.5).mean())
        print(
            f"{name}: ELBO {elbo:.2f}, evidence {evidence:.2f}, k̂ bad {bad:.1%}, k̂ ≤ 0.5 {good:.1%}, "
            f"coverage {np.round(coverage.get(name, np.nan), 3)}"
        )
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_khat(
        axes[0],
        {name: np.clip(report["khat"], -0.3, 5) for name, report in reports.items()},
        reports["encoder"].attrs["khat_threshold"],
    )
    draw_coverage(axes[1], coverage)
    figure.suptitle("359 held-out digits under one fit: its encoder, and a few steps from it")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
