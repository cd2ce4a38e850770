"""``SVI`` is Pyro's: the same losses, parameters, optimizer states and random stream, by fewer runs."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch

from pyro_vae import SVI
from tests.svi.pyro_svi.programs import PROGRAMS, Program


def adam() -> Any:
    """The usual optimizer."""
    return pyro.optim.Adam({"lr": 0.02})


def steps_of(
    kind: Any, make: Callable[[], Program], count: int, optim: Callable[[], Any] = adam
) -> tuple[Any, list[float], dict[str, torch.Tensor], torch.Tensor]:
    """The SVI, its losses, the parameters that it leaves, and the next draw from the stream."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, loss, calls = make()
    svi = kind(model, guide, optim(), loss)
    losses = []
    for i in range(count):
        args, kwargs = calls[i % len(calls)]
        losses.append(svi.step(*args, **kwargs))
    left = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
    return svi, losses, left, torch.rand(3)


def assert_equal_to_pyro(make: Callable[[], Program], count: int, optim: Callable[[], Any] = adam) -> SVI:
    """The same numbers, up to rounding; returns ours."""
    _, losses, left, draw = steps_of(pyro.infer.SVI, make, count, optim)
    svi, ours, parameters, next_draw = steps_of(SVI, make, count, optim)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-4, atol=1e-4)
    assert left.keys() == parameters.keys()
    for name, value in left.items():
        torch.testing.assert_close(parameters[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert torch.equal(draw, next_draw)
    return svi


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_takes_pyros_steps_by_a_graph(name: str) -> None:
    svi = assert_equal_to_pyro(PROGRAMS[name], 4 * len(PROGRAMS[name]().calls))
    assert svi.engine == "captured", svi.reasons
    assert not svi.reasons


@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.99, "clip_norm": 0.1, "weight_decay": 0.1}),
        lambda: pyro.optim.AdamW({"lr": 0.02, "weight_decay": 0.1}),
        lambda: pyro.optim.SGD({"lr": 0.01, "weight_decay": 0.1}),
        lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}),
        lambda: pyro.optim.RMSprop({"lr": 0.01}),
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
        lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.5, "clip_value": 0.2}),
        lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
        ),
    ],
    ids=["clipped", "adamw", "sgd", "momentum", "rmsprop", "per-parameter", "clip", "schedule"],
)
def test_optimizers_move_and_remember_as_pyros(optim: Callable[[], Any]) -> None:
    assert_equal_to_pyro(PROGRAMS["own_loss"], 8, optim)


def test_schedules_rates_and_states_are_pyros() -> None:
    def run(kind: Any) -> tuple[list[float], dict[str, Any]]:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, loss, calls = PROGRAMS["own_loss"]()
        optimizer = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
        )
        svi = kind(model, guide, optimizer, loss)
        losses = []
        for _ in range(5):
            losses += [svi.step(*args, **kwargs) for args, kwargs in calls]
            optimizer.step()
        return losses, optimizer.get_state()

    losses, state = run(pyro.infer.SVI)
    ours, own = run(SVI)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses))
    assert state.keys() == own.keys()
    for name in state:
        theirs, mine = state[name]["optimizer"], own[name]["optimizer"]
        assert theirs["param_groups"] == mine["param_groups"]
        for key, value in theirs["state"][0].items():
            torch.testing.assert_close(mine["state"][0][key], value)


@pytest.mark.parametrize("ask", ["step", "evaluate_loss"])
def test_a_lazy_layer_is_named_with_its_remedy(ask: str) -> None:
    encoder = torch.nn.Sequential(torch.nn.LazyLinear(2))

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, raw = encoder(x).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    pyro.clear_param_store()
    svi, x = SVI(model, guide, adam(), pyro.infer.Trace_ELBO()), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"a lazy layer of model or guide.*call the network.*once"):
        getattr(svi, ask)(x)
    encoder(x)
    assert isinstance(getattr(svi, ask)(x), float)
