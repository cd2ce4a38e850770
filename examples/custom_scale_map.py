"""A scale map of your own, from two methods to a comparison with the built-in ones.

The map here is symmetric in log σ: slope 1 in the middle and falling to both sides, σ between exp(±4.7) with
the default width. Two methods are all that a map needs; the rest is checked as a stranger would check it.

    python examples/custom_scale_map.py
"""

import argparse
import math

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae import scales
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA


class ArcTan(scales.ScaleMap):
    """log σ = width · arctan(raw / width).

    Parameters
    ----------
    width : float
        Half the range of log σ, times 2/π.
    """

    formula = "exp(width·arctan(raw/width))"
    remark = "slope falls like 1/raw² on both sides"

    def __init__(self, width: float = 3.0) -> None:
        super().__init__()
        self.width = float(width)

    @property
    def bounds(self) -> tuple[float, float]:
        return math.exp(-self.width * math.pi / 2), math.exp(self.width * math.pi / 2)

    def _log_scale(self, raw: torch.Tensor) -> torch.Tensor:
        return self.width * (raw / self.width).arctan()

    def _raw(self, scale: torch.Tensor) -> torch.Tensor:
        return self.width * (scale.log() / self.width).tan()


def check(scale_map: scales.ScaleMap) -> None:
    """What every map must hold: its inverse, its slope, its Jacobian, its constraint."""
    raw = torch.linspace(-5, 5, 101, dtype=torch.float64)
    scale = scale_map(raw)
    inverse = (scale_map.inv(scale) - raw).abs().max()
    (derivative,) = torch.autograd.functional.jacobian(lambda r: scale_map.log_scale(r).sum(), (raw,))
    slope = (scale_map.slope(raw) - derivative).abs().max()
    jacobian = scale_map.log_abs_det_jacobian(raw, scale) - (scale * scale_map.slope(raw)).log()
    print(f"{scale_map!r}: inv(g(raw)) − raw {inverse:.0e}, slope {slope:.0e}, ", end="")
    print(f"Jacobian {jacobian.abs().max():.0e}, constraint {scale_map.constraint.check(scale).all().item()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()

    scales.register("arctan", ArcTan)
    check(scales.get("arctan"))
    check(scales.get("arctan", width=1.0, min_scale=1e-3))
    print({key: scales.table()[-1][key] for key in ("name", "sigma", "slope_at_0", "range")})

    # A model whose evidence and posterior are known: what the best guide can reach is no matter of opinion.
    pixels = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    model = PPCA.fit_exact(pixels, latent_dim=4)
    exact = model.log_evidence(pixels).mean()
    print(f"exact evidence, which a diagonal guide reaches here: {exact:.3f} nats per image")
    for name in ("arctan", "softplus", "logvar"):
        torch.manual_seed(0)
        guide = AmortizedNormal(model, torch.nn.Identity(), scale=name)
        pyro_vae.fit(
            model,
            guide,
            pixels,
            steps=args.steps,
            batch_size=256,
            lr=0.02,
            lr_multiplier="matched",
            schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, args.steps),
            progress=False,
        )
        elbo = pyro_vae.diagnose(model, guide, pixels[:300], draws=200)["elbo"].mean()
        gap = float(model.log_evidence(pixels[:300]).mean()) - float(elbo)
        ratio = (guide.posterior(pixels).stddev / model.posterior(pixels).stddev).mean()
        print(f"{name:10} gap {gap:.3f} nats per image, σ {ratio:.2f} times the exact one")

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    raw = torch.linspace(-6, 6, 400)
    for name in ("arctan", "softplus", "logvar"):
        axes.plot(raw, scales.get(name)(raw), label=name)
    axes.set(xlabel="raw", ylabel="σ", ylim=(0, 4))
    axes.legend(frameon=False)
    figure.savefig("custom_scale_map.png")
    print("picture: custom_scale_map.png")


if __name__ == "__main__":
    main()
