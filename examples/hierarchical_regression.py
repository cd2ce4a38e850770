"""Scale maps in AutoNormal: a hierarchical regression, the same guide under every map.

Forty schools have a line each, y = intercept + slope · x + noise; intercepts and slopes come from a
population whose mean and spread are unknown too. The model has positive latents, and its groups are small, so
posteriors are of very different width. The autoguides are Pyro's, with the map as an argument.

    python examples/hierarchical_regression.py
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam

from pyro_vae import SVI
from pyro_vae.guides import AutoNormal

TRUE_INTERCEPT, TRUE_SLOPE, TRUE_NOISE = 1.0, -0.5, 0.3


def model(x: torch.Tensor, y: torch.Tensor, school: torch.Tensor, schools: int) -> None:
    population = pyro.sample("population", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(torch.ones(2)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("schools", schools):
        line = pyro.sample("line", dist.Normal(population, spread).to_event(1))
    with pyro.plate("pupils", len(x)):
        intercept, slope = line[school].unbind(-1)
        pyro.sample("y", dist.Normal(intercept + slope * x, noise), obs=y)


def simulated(schools: int, pupils: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    school = torch.arange(schools).repeat_interleave(pupils)
    lines = torch.tensor([TRUE_INTERCEPT, TRUE_SLOPE]) + torch.randn(schools, 2) * torch.tensor([0.8, 0.2])
    x = torch.randn(schools * pupils)
    y = lines[school, 0] + lines[school, 1] * x + TRUE_NOISE * torch.randn(len(x))
    return x, y, school


def interval(ends: torch.Tensor) -> str:
    low, high = ends.detach().flatten().tolist()
    return f"{low:.2f} to {high:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schools", type=int, default=40)
    parser.add_argument("--pupils", type=int, default=10, help="in each school")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--scales", nargs="*", default=["softplus", "logvar", "logstd", "softplus-var", "explinear"]
    )
    args = parser.parse_args()

    pyro.set_rng_seed(0)
    data = (*simulated(args.schools, args.pupils), args.schools)
    print(f"truth: intercept {TRUE_INTERCEPT}, slope {TRUE_SLOPE}, noise {TRUE_NOISE}")
    print("map                ELBO   intercept     slope           noise         widths over schools (90%)")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.axvline(TRUE_SLOPE, color="black", lw=0.8, ls="--")
    for name in args.scales:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        guide = AutoNormal(model, scale=name, init_scale=0.1)
        decay = 0.05 ** (1 / args.steps)
        svi = SVI(model, guide, ClippedAdam({"lr": 0.05, "lrd": decay}), Trace_ELBO())
        for _ in range(args.steps):
            svi.step(*data)
        elbo = -sum(svi.evaluate_loss(*data) for _ in range(100)) / 100
        levels = [0.05, 0.95]
        population, noise, line = (guide.quantiles(levels, *data)[k] for k in ("population", "noise", "line"))
        widths = line[1] - line[0]
        axes.plot(population[..., 1].detach().flatten(), [name, name], "o-")
        print(
            f"{name:13}{elbo:10.2f}   {interval(population[..., 0])}  {interval(population[..., 1])}  "
            f"{interval(noise)}  {widths.min():.2f} to {widths.max():.2f}"
        )

    axes.set(xlabel="slope of the population: 90% interval (dashed: the truth)")
    figure.savefig("hierarchical_regression.png")
    print("picture: hierarchical_regression.png")


if __name__ == "__main__":
    main()
