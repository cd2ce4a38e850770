"""Diagnose guides that were trained elsewhere: an encoder of plain PyTorch, and a guide of plain Pyro.

The first pair is a VAE as many people write it, nn.Modules and a loss, without any Pyro. Two functions of
three lines tell Pyro what the weights mean; then every diagnostic works. The second pair is a Pyro program
with an autoguide, trained by Pyro's own SVI and its parameter store, and needs nothing at all.

    python examples/diagnose_elsewhere.py
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from torch import nn

import pyro_vae
from pyro_vae import plots
from pyro_vae.posterior import coverage_reading

Z_DIM = 6


def train_plain_pytorch(images: torch.Tensor, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Somebody else's code: encoder and decoder, fitted to the negative ELBO with log variance."""
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * Z_DIM))
    decoder = nn.Sequential(nn.Linear(Z_DIM, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(epochs):
        for x in images[torch.randperm(len(images))].split(64):
            mu, logvar = encoder(x).chunk(2, dim=-1)
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            reconstruction = nn.functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            optimizer.zero_grad()
            (reconstruction + kl).backward()
            optimizer.step()
    return encoder, decoder


def report(name: str, diagnostics: xr.Dataset) -> None:
    mean, threshold = diagnostics.mean(), diagnostics.khat_threshold
    print(f"{name}: ELBO {mean['elbo']:.2f}, log evidence {mean['log_evidence']:.2f} nats per observation")
    bad = float((diagnostics["khat"] > threshold).mean())
    print(f"{name}: k̂ above {threshold:.2f} for {bad:.0%} of the observations")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=1500, help="of Pyro's SVI")
    parser.add_argument("--observations", type=int, default=200, help="held-out images to look at")
    args = parser.parse_args()
    pyro.set_rng_seed(0)

    images = torch.tensor(load_digits().data > 7, dtype=torch.float32)
    encoder, decoder = train_plain_pytorch(images[:1500], args.epochs)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z_DIM), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        mu, logvar = encoder(x).chunk(2, dim=-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mu, torch.exp(0.5 * logvar)).to_event(1))

    held_out = images[1500 : 1500 + args.observations]
    of_images = pyro_vae.diagnose(model, guide, held_out)
    report("PyTorch", of_images)
    print(f"PyTorch: {coverage_reading(pyro_vae.calibrate(model, guide, data=held_out))}")
    print(f"PyTorch: {pyro_vae.active_units(model, guide, held_out).active_units} of {Z_DIM} latents active")

    # Five counts per row with a log rate of its own; Pyro's AutoNormal, Pyro's SVI, Pyro's parameter store.
    counts = torch.distributions.Poisson(torch.randn(args.observations, 1).exp().expand(-1, 5)).sample()

    def rates(counts: torch.Tensor) -> None:
        with pyro.plate("rows", len(counts)):
            log_rate = pyro.sample("log_rate", dist.Normal(0.0, 1.0))
            rate = log_rate.exp().unsqueeze(-1).expand(*log_rate.shape, 5)
            pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)

    autoguide = AutoNormal(rates)
    svi = SVI(rates, autoguide, pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.998}), Trace_ELBO())
    for _ in range(args.steps):
        svi.step(counts)
    diagnostics = pyro_vae.diagnose(rates, autoguide, counts)
    report("Pyro", diagnostics)
    bad = diagnostics["khat"].values > diagnostics.khat_threshold
    for which, rows in (("bad", counts[bad]), ("good", counts[~bad])):
        print(f"Pyro: {len(rows)} rows with a {which} k̂ have {rows.sum(-1).mean():.1f} counts on average")
    # Few counts leave a long left tail, the prior's, that no Normal with the right middle has.

    figure = plots.plot_khat({"PyTorch": of_images, "Pyro": diagnostics})
    figure.savefig("diagnose_elsewhere.png")
    print("picture: diagnose_elsewhere.png")


if __name__ == "__main__":
    main()
