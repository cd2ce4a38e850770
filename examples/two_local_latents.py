"""A hand-written Pyro model with two latents per observation, fitted and judged without changing it.

Each row is a short series of measurements of one sensor: a position z that all its measurements share, and a
noise level of its own, τ > 0. The guide finds both by running the model; its Normal for τ is pushed to the
positive numbers.

    python examples/two_local_latents.py
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

import pyro_vae
from pyro_vae import plots
from pyro_vae.guides import AmortizedMultivariateNormal, AmortizedNormal


def model(x: torch.Tensor) -> None:
    """z ~ Normal(0, 1), τ ~ LogNormal(−1, ½), x_j ~ Normal(2z, τ)."""
    with pyro.plate("sensors", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        tau = pyro.sample("tau", dist.LogNormal(x.new_tensor(-1.0), 0.5))
        loc = (2 * z).unsqueeze(-1).expand(*z.shape, x.shape[-1])
        pyro.sample("x", dist.Normal(loc, tau.unsqueeze(-1)).to_event(1), obs=x)


class Moments(torch.nn.Module):
    """An encoder: what a statistician would look at first, and a network on top."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(2, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, hidden), torch.nn.Tanh()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(torch.stack([x.mean(-1), x.std(-1).log()], -1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sensors", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000, help="importance draws per sensor")
    args = parser.parse_args()

    torch.manual_seed(0)
    truth = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(torch.zeros(args.sensors, 5))
    x, z, tau = (truth.nodes[name]["value"] for name in ("x", "z", "tau"))
    n_train = int(0.8 * len(x))

    guides, diagnostics = {}, {}
    for family in (AmortizedNormal, AmortizedMultivariateNormal):
        name = family.__name__
        torch.manual_seed(0)
        guides[name] = family(model, Moments(32), scale="softplus", init_scale=0.2)
        pyro_vae.fit(model, guides[name], x[:n_train], epochs=args.epochs, lr=3e-3)
        diagnostics[name] = pyro_vae.diagnose(model, guides[name], x[n_train:], draws=args.draws)
        khat, elbo = float(diagnostics[name]["khat"].median()), float(diagnostics[name]["elbo"].mean())
        print(f"{name}: median k̂ {khat:.2f}, ELBO {elbo:.3f} nats per sensor")
    # the model has no parameters, so the guides differ only in how close they come to the same evidence
    print(pyro_vae.compare(diagnostics, shared_model=True).to_string())

    medians = guides["AmortizedNormal"].median(x[n_train:])
    for name, true in (("z", z), ("tau", tau)):
        correlation = torch.corrcoef(torch.stack([medians[name].cpu(), true[n_train:]]))[0, 1]
        print(f"{name}: correlation of posterior median and truth {correlation:.3f}")

    figure = plots.plot_khat(diagnostics)
    figure.savefig("two_local_latents.png")
    print("picture: two_local_latents.png")


if __name__ == "__main__":
    main()
