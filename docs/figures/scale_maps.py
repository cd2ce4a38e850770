"""Draws docs/images/scale_maps.png: σ, log σ, its slope and the gradient of the KL, for every scale map.

python docs/figures/scale_maps.py
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vae import scales

PICTURE = Path(__file__).parent.parent / "images" / "scale_maps.png"

SMOOTH = ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")
LIMITED = ("bounded", "softclip", "clamp", "abs")
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b")  # told apart by most eyes
DASHES = ("-", "--", "-", "--", ":", "-.")


def kl_gradient(scale_map: scales.ScaleMap, raw: Tensor) -> Tensor:
    """d KL(N(0, σ²) ‖ N(0, 1)) / d raw = (σ² − 1) · slope."""
    return torch.expm1(2 * scale_map.log_scale(raw)) * scale_map.slope(raw)


ROWS = (
    ("σ", 4.0, lambda scale_map, raw: scale_map(raw)),
    ("log σ  (nats)", 12.0, lambda scale_map, raw: scale_map.log_scale(raw)),
    ("slope  d log σ / d raw", 12.0, lambda scale_map, raw: scale_map.slope(raw)),
    ("KL gradient  (σ² − 1) · slope", 12.0, kl_gradient),
)


def axis_style(axis: Axes, row: int, *, limited: bool) -> None:
    axis.grid(alpha=0.25)
    if row == 0:
        axis.set_ylim(0, 5)
    elif row == 1:
        axis.set_ylim(-16, 8)
    elif row == 2 and not limited:
        axis.set_yscale("log")
        axis.set_ylim(1e-2, 1e2)
    elif row == 2:
        axis.set_yscale("symlog", linthresh=1e-2)
        axis.set_ylim(-2e3, 2e3)
        axis.set_yticks([-1e3, -1e1, -1e-1, 0, 1e-1, 1e1, 1e3])
    else:
        axis.set_yscale("symlog", linthresh=0.5)
        axis.set_ylim(-2e3, 2e5)
        axis.set_yticks(
            [-1e3, -1e1, -0.5, 0, 0.5, 1e1, 1e3, 1e5],
            ["$-10^3$", "$-10$", "−½", "0", "½", "$10$", "$10^3$", "$10^5$"],
        )
        axis.axhspan(-0.5, 0.5, color="#009e73", alpha=0.12, linewidth=0)


def draw(path: Path) -> None:
    """Two columns, smooth maps on the left and limited ones on the right; one row per quantity."""
    figure, axes = plt.subplots(len(ROWS), 2, figsize=(10, 13.5), constrained_layout=True)
    columns = (("smooth on all of ℝ", SMOOTH), ("with limits, beside logvar", ("logvar", *LIMITED)))
    for column, (title, names) in enumerate(columns):
        for row, (label, width, value) in enumerate(ROWS):
            axis = axes[row, column]
            raw = torch.linspace(-width, width, 4001, dtype=torch.float64)
            for i, name in enumerate(names):
                y = value(scales.get(name), raw).numpy().copy()
                if row >= 2 and name in ("clamp", "abs"):
                    y[len(y) // 2 - 1 : len(y) // 2 + 2] = np.nan  # the slope jumps here: no vertical line
                axis.plot(raw, y, label=name, color=COLOURS[i], linestyle=DASHES[i], linewidth=1.8)
            axis_style(axis, row, limited=column == 1)
            axis.set_xlabel("raw")
            axis.set_ylabel(label)
        axes[0, column].legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncol=3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
