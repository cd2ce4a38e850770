"""Pyro's VAE tutorial with the guide swapped: the tutorial's classes and its SVI loop, and one new line.

The tutorial writes the guide by hand: its encoder puts out loc and exp(log σ), and its guide opens the plate
and samples. Here that guide and imported ones, one for each scale map, train the same model. The images are
scikit-learn's 8×8 digits, binarized; nothing is downloaded.

    python examples/pyro_tutorial.py
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import nn

from pyro_vae.guides import AmortizedNormal

PIXELS, Z_DIM = 64, 5


class Decoder(nn.Module):
    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, PIXELS)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc21(nn.functional.softplus(self.fc1(z))))


class Encoder(nn.Module):
    """The tutorial's: hidden layer, then one head for the location and one for the scale."""

    def __init__(self, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PIXELS, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = nn.functional.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class VAE(nn.Module):
    """As in the tutorial, https://pyro.ai/examples/vae.html."""

    def __init__(self, z_dim: int = Z_DIM, hidden_dim: int = 100) -> None:
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim)
        self.decoder = Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros((x.shape[0], self.z_dim))
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class Features(nn.Module):
    """What an imported guide wants of an encoder: the features; it has heads of its own."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.fc1 = encoder.fc1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(self.fc1(x))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--scales", nargs="*", default=["logstd", "logvar", "softplus", "softplus-var"])
    args = parser.parse_args()

    images = torch.tensor(load_digits().data > 7, dtype=torch.float32)
    train, test = images[:1500], images[1500:]
    elbos = {}
    for name in ("tutorial", *args.scales):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = VAE()
        guide = vae.guide
        if name != "tutorial":
            guide = AmortizedNormal(vae.model, Features(vae.encoder), scale=name)  # the one new line
        svi = SVI(vae.model, guide, Adam({"lr": 1.0e-3}), loss=Trace_ELBO())
        for _ in range(args.epochs):
            for x in train[torch.randperm(len(train))].split(64):
                svi.step(x)
        losses = [svi.evaluate_loss(test) / len(test) for _ in range(20)]
        elbos[name] = -sum(losses) / len(losses)
        print(f"{name:13} test ELBO {elbos[name]:.2f} nats per image")

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(elbos.values()), list(elbos), "o")
    axes.set(xlabel="test ELBO (nats per image)")
    axes.invert_yaxis()
    figure.savefig("pyro_tutorial.png")
    print("picture: pyro_tutorial.png")


if __name__ == "__main__":
    main()
