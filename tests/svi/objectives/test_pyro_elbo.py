"""Any ELBO of Pyro is an objective of ``fit``: the losses of Pyro's own SVI, enumeration included."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import Tensor

import pyro_vae
from pyro_vae.svi.objectives.pyro_elbo import PyroELBO


@pyro.infer.config_enumerate
def mixture(x: Tensor) -> None:
    weights = pyro.param("weights", lambda: torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
    locs = pyro.param("locs", lambda: torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[assignment], 1.0), obs=x)


def nothing(x: Tensor) -> None:
    """The guide of a model whose latents are all summed out."""


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def encoder(x: Tensor) -> None:
    scale = pyro.param("scale", lambda: torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", lambda: torch.tensor(0.1)) * x, scale))


ELBOS: dict[str, tuple[Any, Any, Callable[[], Any]]] = {
    "trace": (local, encoder, Trace_ELBO),
    "particles": (local, encoder, lambda: Trace_ELBO(num_particles=2)),
    "mean field": (local, encoder, TraceMeanField_ELBO),
    "graph": (local, encoder, TraceGraph_ELBO),
    "renyi": (local, encoder, lambda: RenyiELBO(num_particles=3, vectorize_particles=True)),
    "enumerated": (mixture, nothing, TraceEnum_ELBO),
}


@pytest.mark.parametrize("name", ELBOS)
def test_captured_steps_are_eager_ones_and_the_history_has_the_loss_alone(name: str) -> None:
    model, guide, elbo = ELBOS[name]
    x = torch.linspace(-2, 2, 6)
    histories = []
    for engine in ("eager", "captured"):
        fitted = pyro_vae.fit(
            model, guide, x, steps=4, batch_size=6, objective=elbo(), engine=engine, progress=False
        )
        assert fitted.engine == engine
        assert torch.isnan(torch.tensor(fitted.history["kl"].values)).all()
        histories.append(torch.tensor(fitted.history["loss"].values))
    torch.testing.assert_close(*histories)


def test_gradients_are_those_of_loss_and_grads() -> None:
    x = torch.linspace(-2, 2, 6)
    for model, guide, elbo in ELBOS.values():
        pyro.clear_param_store()
        made = elbo()
        made.loss(model, guide, x)
        leaves = dict(pyro.get_param_store().named_parameters())
        torch.manual_seed(1)
        loss = made.loss_and_grads(model, guide, x)
        torch.manual_seed(1)
        estimate = PyroELBO(made).estimate(model, guide, (x,))
        gradients = torch.autograd.grad(estimate.surrogate, list(leaves.values()))
        assert float(estimate.loss) == pytest.approx(loss)
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            torch.testing.assert_close(gradient, leaf.grad)


def test_a_mixture_is_fitted_by_enumeration_and_refused_without() -> None:
    x = torch.cat([torch.randn(40) - 4, torch.randn(40) + 4])
    options = {"batch_size": 80, "steps": 150, "lr": 0.1, "progress": False}
    fitted = pyro_vae.fit(mixture, nothing, x, objective=TraceEnum_ELBO(max_plate_nesting=1), **options)
    with fitted.parameters():
        locs = pyro.param("locs").detach()
    torch.testing.assert_close(locs, torch.stack([x[:40].mean(), x[40:].mean()]), atol=0.1, rtol=0)
    with pytest.raises(ValueError, match=r"enumerates 'assignment'.*TraceEnum_ELBO"):
        pyro_vae.fit(mixture, nothing, x, **options)


@pytest.mark.parametrize("elbo", [ReweightedWakeSleep, TraceTailAdaptive_ELBO])
def test_what_has_no_single_loss_is_left_to_svi(elbo: Any) -> None:
    x = torch.linspace(-2, 2, 6)
    made = {"num_particles": 3, "vectorize_particles": elbo is TraceTailAdaptive_ELBO}
    with pytest.raises(TypeError, match=f"objective is {elbo.__name__}.*pyro_vae.SVI"):
        pyro_vae.fit(local, encoder, x, steps=1, objective=elbo(**made), progress=False)
    losses = []
    for kind in (pyro.infer.SVI, pyro_vae.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = kind(local, encoder, pyro.optim.Adam({"lr": 0.1}), elbo(**made))
        losses.append(torch.tensor([svi.step(x) for _ in range(4)]))
    torch.testing.assert_close(losses[1], losses[0])
