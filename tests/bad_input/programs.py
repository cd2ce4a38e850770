"""Pyro pairs that go wrong, each in one way, and one that does not."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

X = torch.zeros(6, 3, dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def renamed(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(loc, 1.0).to_event(1))


def silent(x: Tensor) -> None:
    """Draws nothing."""
    pyro.param("loc", x.new_zeros(2))


def larger(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def twice(x: Tensor) -> None:
    loc = pyro.param("loc", x.new_zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def outside_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(2)), 1.0).to_event(1))


def unobserved(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def no_argument() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def nothing_to_learn(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
