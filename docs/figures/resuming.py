"""Draws docs/images/resuming.png: the loss of a fit that was interrupted and went on, upon that of one that
was not.

python docs/figures/resuming.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA

PICTURE = Path(__file__).parent.parent / "images" / "resuming.png"
BEFORE, AFTER = "#d55e00", "#0072b2"
EPOCHS, INTERRUPTED = 12, 5


def make_pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = PPCA(torch.randn(6, 2), torch.zeros(6), 0.5)
    return model, AmortizedNormal(model, torch.nn.Identity())


def main() -> None:
    x = make_pair()[0].sample(1000)
    options = {"batch_size": 64, "lr": 5e-3, "progress": False}
    whole = pyro_vae.fit(*make_pair(), x, epochs=EPOCHS, **options).history["loss"]
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "ppca.state"
        first = pyro_vae.fit(*make_pair(), x, epochs=INTERRUPTED, checkpoint=state, **options).history["loss"]
        more = pyro_vae.fit(*make_pair(), x, epochs=EPOCHS, checkpoint=state, **options).history["loss"]
    print(f"equal to the bit: {bool((more == whole).all())}")
    figure, axes = plt.subplots(figsize=(4.8, 2.6), layout="constrained")
    axes.plot(whole["step"], whole, color="0.8", lw=5, label="never interrupted")
    axes.plot(first["step"], first, color=BEFORE, lw=1.5, label="until it was interrupted")
    rest = more[len(first) :]
    axes.plot(rest["step"], rest, color=AFTER, lw=1.5, label="taken up from its checkpoint")
    axes.axvline(len(first) + 0.5, color="0.4", ls="--", lw=1)
    axes.set(xlabel="step", ylabel="loss, nats per observation")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    main()
