"""Counts in a table: are they Poisson, or do they vary more than that?

Two models of the same counts, one with a Poisson and one with a negative binomial likelihood, are compared by
the evidence of held-out rows. Without --csv the table is simulated: 2,000 rows, 20 columns, two latent
factors, counts with variance μ + μ²/r and r = 2.

    python examples/count_data.py
    python examples/count_data.py --csv my_counts.csv
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import pyro_vae
from pyro_vae import plots
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

TRUE_R = 2.0


def simulated_table(folder: Path, rows: int) -> Path:
    """A .csv file of overdispersed counts."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 2))
    mean = np.exp(1.5 + z @ rng.normal(scale=0.6, size=(2, 20)))
    counts = rng.negative_binomial(TRUE_R, TRUE_R / (TRUE_R + mean))
    path = folder / "counts.csv"
    header = ",".join(f"gene{i}" for i in range(counts.shape[1]))
    np.savetxt(path, counts, fmt="%d", delimiter=",", header=header, comments="")
    return path


class LogCounts(torch.nn.Module):
    """An encoder that reads log(1 + x), because counts differ by orders of magnitude."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x.log1p())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, help="a table of counts (default: simulate one)")
    parser.add_argument("--rows", type=int, default=2000, help="rows to simulate")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=500, help="importance draws per held-out row")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = args.csv or simulated_table(Path(folder), args.rows)
        data = pyro_vae.data.load(path, likelihood="poisson")
    train, held_out = pyro_vae.data.split(data, 0.2)
    features = train.x.shape[1]

    diagnostics = {}
    for name in ("poisson", "negative-binomial"):
        torch.manual_seed(0)
        model = VAE(MLPDecoder(2, [64], features), 2, likelihoods.get(name))
        model.init_output(torch.from_numpy(train.x))
        guide = AmortizedNormal(model, LogCounts(MLPEncoder(features, [64])), init_scale=0.3)
        pyro_vae.fit(model, guide, train.x, epochs=args.epochs, lr=3e-3)
        diagnostics[name] = pyro_vae.diagnose(model, guide, held_out.x, draws=args.draws, refined=True)
        if name == "negative-binomial":
            r = model.observation.dispersion.detach().exp()
            print(f"inverse dispersion r per column: {r.min():.2f} to {r.max():.2f}, median {r.median():.2f}")

    print(pyro_vae.compare(diagnostics).to_string())

    figure = plots.plot_evidence(diagnostics)
    figure.savefig("count_data.png")
    print("picture: count_data.png")


if __name__ == "__main__":
    main()
