"""A captured step is never another program's: what changes around a program is noticed, what depends on data
is left to Pyro, and the line that is the reason is named."""

import random
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vae import SVI

OPTIONS: dict[str, Any] = {"beta": 1.0, "kind": "normal"}


def guide(x: Tensor, *_: Any) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(()))
    pyro.sample("z", dist.Normal(loc, 1.0))


@dataclass(frozen=True)
class Options:
    """What a program reads from an argument."""

    beta: float
    shift: Tensor
    kind: str


class Settings:
    """The same as an object of a user's class, which stays and changes."""

    def __init__(self, beta: float, shift: Tensor, kind: str) -> None:
        self.beta, self.shift, self.kind = beta, shift, kind

    def follow(self, other: "Settings") -> "Settings":
        """Take over the values of another."""
        vars(self).update(vars(other))
        return self


def both(model: Callable[..., Any], calls: Callable[[int], tuple[Any, ...]], count: int = 8) -> SVI:
    """Ours, after the same losses as Pyro's; ``calls`` may change what it likes before each step."""
    losses, last = [], None
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        OPTIONS.update(beta=1.0, kind="normal")
        last = kind(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses.append([last.step(*calls(i)) for i in range(count)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=1e-5)
    assert isinstance(last, SVI)
    return last


def batch(i: int) -> Tensor:
    """Another one at every step."""
    return torch.arange(5.0) - i


def observe(x: Tensor, scale: Any = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_a_float_that_is_annealed_in_a_dict_becomes_an_input() -> None:
    def model(x: Tensor) -> None:
        with poutine.scale(scale=OPTIONS["beta"]):
            observe(x)

    def calls(i: int) -> tuple[Any, ...]:
        OPTIONS["beta"] = 0.1 * (i + 1)
        return (batch(i),)

    svi = both(model, calls, 12)
    assert svi.engine == "captured"
    assert not svi.reasons
    assert svi._steps is not None
    assert sum(map(len, svi._steps.entries.values())) <= 2


def test_a_float_among_the_arguments_becomes_an_input() -> None:
    svi = both(lambda x, beta: observe(x, 1.0 + beta), lambda i: (batch(i), 0.1 * i), 8)
    assert svi.engine == "captured"
    assert not svi.reasons


def test_a_word_that_changes_is_another_program() -> None:
    def model(x: Tensor) -> None:
        observe(x, 1.0 if OPTIONS["kind"] == "normal" else 3.0)

    def calls(i: int) -> tuple[Any, ...]:
        OPTIONS["kind"] = "normal" if i % 5 else "wide"
        return (batch(i),)

    assert both(model, calls, 12).engine == "captured"


def test_attributes_globals_and_buffers_that_are_replaced_are_noticed() -> None:
    settings = SimpleNamespace(scale=1.0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.zeros(5))
            self.power = 1

        def forward(self, x: Tensor) -> None:
            observe((x + self.shift) ** self.power, settings.scale)

    model = Model()

    def calls(i: int) -> tuple[Any, ...]:
        settings.scale = 1.0 + (i >= 4)
        model.power = 1 + (i >= 6)
        model.shift = torch.full((5,), float(i >= 8))
        return (batch(i),)

    assert both(model, calls, 12).engine == "captured"


def test_training_flags_choose_between_graphs() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        observe(net(x.unsqueeze(-1)).squeeze(-1).detach() + x)

    def calls(i: int) -> tuple[Any, ...]:
        if not i:
            net.load_state_dict(start)
        net.train(i % 4 < 2)
        return (batch(i),)

    svi = both(model, calls, 12)
    assert svi._steps is not None
    assert [len(found) for found in svi._steps.entries.values()] == [2]


def sizes_of_data(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    inside = x[x > 0]
    with pyro.plate("data", len(inside)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=inside)


def numbers_of_data(x: Tensor) -> None:
    total = int(x.abs().sum())
    observe(x, 1.0 + total)


def branches_on_data(x: Tensor) -> None:
    observe(x, 1.0 if x.sum() > 0 else 2.0)


def passes_through_numpy(x: Tensor) -> None:
    observe(x, 1.0 + float(np.abs(x.numpy()).sum()))


def counts_elements(x: Tensor) -> None:
    with poutine.scale(scale=1 / len((x > 0).nonzero())):
        observe(x)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (sizes_of_data, "inside = x[x > 0]"),
        (numbers_of_data, "total = int(x.abs().sum())"),
        (branches_on_data, "observe(x, 1.0 if x.sum() > 0 else 2.0)"),
        (passes_through_numpy, "observe(x, 1.0 + float(np.abs(x.numpy()).sum()))"),
        (counts_elements, "with poutine.scale(scale=1 / len((x > 0).nonzero())):"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_depends_on_data_is_left_to_pyro_and_its_line_is_named(
    model: Callable[..., Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    svi = both(model, lambda i: (torch.arange(6.0) - 0.7 * (i % 4),), 5)
    assert svi.engine == "pyro"
    assert Path(__file__).name in caplog.text
    assert line in caplog.text


@pytest.mark.parametrize(
    ("draw", "whose"),
    [(random.random, "Python's"), (lambda: float(np.random.rand()), "numpy's")],
    ids=["python", "numpy"],
)
def test_draws_of_others_are_left_to_pyro(draw: Callable[[], float], whose: str) -> None:
    svi = both(lambda x: observe(x, 1.0 + draw()), lambda i: (batch(i),), 5)
    assert svi.engine == "pyro"
    assert whose in svi.reasons[0]


def test_a_program_that_counts_its_runs_is_left_to_pyro() -> None:
    counter = {"runs": 0}

    def model(x: Tensor) -> None:
        counter["runs"] += 1
        observe(x, 1.0 + counter["runs"])

    def calls(i: int) -> tuple[Any, ...]:
        counter["runs"] = counter["runs"] if i else 0
        return (batch(i),)

    svi = both(model, calls, 6)
    assert svi.engine == "pyro"
    assert "counter['runs']" in svi.reasons[0]


def test_a_program_that_changes_a_tensor_in_place_is_left_to_pyro() -> None:
    state = torch.zeros(())

    def model(x: Tensor) -> None:
        state.add_(1.0)
        observe(x, 1.0 + state.clone())

    def calls(i: int) -> tuple[Any, ...]:
        if not i:
            state.zero_()
        return (batch(i),)

    svi = both(model, calls, 6)
    assert svi.engine == "pyro"
    assert "state" in svi.reasons[0]


def test_a_number_of_a_constant_tensor_holds_until_it_is_changed() -> None:
    scale = torch.tensor(1.0)

    def calls(i: int) -> tuple[Any, ...]:
        scale.fill_(1.0 if i < 4 else 2.0)
        return (batch(i),)

    assert both(lambda x: observe(x, float(scale)), calls, 8).engine == "captured"


def test_an_array_that_is_changed_in_place_is_noticed() -> None:
    scale = np.ones(1)

    def calls(i: int) -> tuple[Any, ...]:
        scale[0] = 1.0 if i < 5 else 2.0
        return (batch(i),)

    assert both(lambda x: observe(x, torch.tensor(scale[0])), calls, 8).engine == "captured"


def test_a_captured_step_that_pyro_no_longer_confirms_is_captured_again() -> None:
    big = np.ones(5000)

    def calls(i: int) -> tuple[Any, ...]:
        big[0] = 1.0 if i < 2 else 2.0  # the first replay is compared
        return (batch(i),)

    svi = both(lambda x: observe(x, torch.tensor(big)[0].clone()), calls, 6)
    assert svi.engine == "captured"
    assert not svi.reasons


def test_what_pyro_refuses_is_refused_by_pyro() -> None:
    def model(x: Tensor) -> None:
        rate = pyro.sample("z", dist.Normal(0.0, 1.0)).exp()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(4):
        svi.step(torch.arange(5.0))
    assert svi.engine == "captured"
    with pytest.raises(ValueError, match="within the support"):
        svi.step(torch.arange(5.0) - 1)
    assert svi.step(torch.arange(5.0)) > 0


def test_a_loss_that_is_not_finite_is_warned_of_by_pyro() -> None:
    svi = SVI(observe, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for i in range(4):
        svi.step(batch(i))
    nothing = torch.full((5,), torch.nan)
    for _ in range(4):
        with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN"):
            svi.step(nothing)


def test_stores_are_loaded_cleared_and_shared_with_pyro(tmp_path: Path) -> None:
    file = tmp_path / "store"
    x = torch.randn(7)

    def made(kind: Any) -> Any:
        return kind(observe, AutoNormal(observe), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())

    svi = made(SVI)
    for _ in range(5):
        svi.step(x)
    pyro.get_param_store().save(str(file))
    saved = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
    svi.step(x)
    pyro.get_param_store().load(str(file))
    loss = svi.step(x)  # notices that the parameters are others
    assert torch.isfinite(torch.tensor(loss))
    assert svi._steps is not None
    pyro.clear_param_store()
    pyro.get_param_store().load(str(file))
    theirs = made(pyro.infer.SVI)
    theirs.evaluate_loss(x)
    for name, value in pyro.get_param_store().items():
        assert torch.equal(value.detach(), saved[name])
    theirs.step(x)
    pyro.get_param_store().save(str(file))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(file))
    again = made(SVI)
    assert isinstance(again.step(x), float)


def test_handlers_outside_see_what_the_program_does() -> None:
    svi = SVI(observe, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for i in range(4):
        svi.step(batch(i))
    with poutine.trace(param_only=True) as seen:
        svi.step(batch(0))
    assert "loc" in seen.trace.nodes


def test_evaluate_loss_is_pyros_and_moves_nothing() -> None:
    losses = []
    for kind in (pyro.infer.SVI, SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = kind(observe, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses.append([svi.evaluate_loss(batch(i)) for i in range(6)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]))
    assert float(pyro.param("loc").detach()) == 0.0


def test_another_optimizer_than_pyros_is_refused_as_pyro_does() -> None:
    with pytest.raises(ValueError, match="PyroOptim"):
        SVI(observe, guide, torch.optim.Adam([torch.zeros(1, requires_grad=True)]), Trace_ELBO())


def test_a_factory_of_torch_is_taken() -> None:
    svi = SVI(observe, guide, lambda ps: torch.optim.Adam(ps, lr=0.1), Trace_ELBO())
    before = [svi.step(batch(0)) for _ in range(4)]
    assert all(isinstance(loss, float) for loss in before)
    assert float(pyro.param("loc").detach()) != 0.0


def test_a_program_that_changes_its_arguments_is_left_to_pyro() -> None:
    def anneals(x: Tensor, options: dict[str, float]) -> None:
        options["scale"] *= 0.9
        observe(x, options["scale"])

    def moves(values: Tensor) -> None:
        values.mul_(1.01)
        observe(values)

    shared = {pyro.infer.SVI: {"scale": 1.0}, SVI: {"scale": 1.0}}
    kinds = iter([*[shared[pyro.infer.SVI]] * 8, *[shared[SVI]] * 8])
    svi = both(anneals, lambda i: (batch(i), next(kinds)))
    assert svi.reasons == ["it changes its arguments whenever it runs"]
    assert shared[SVI] == shared[pyro.infer.SVI]
    data = iter([*[batch(0)] * 8, *[batch(0).clone()] * 8])
    assert both(moves, lambda _: (next(data),)).reasons == ["it changes its arguments whenever it runs"]


def test_a_function_among_the_arguments_is_not_taken_for_another_at_its_place_in_memory() -> None:
    def model(x: Tensor, link: Callable[[Tensor], Tensor]) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(link(z), 1.0), obs=x)

    def of(power: int) -> Callable[[Tensor], Tensor]:
        return lambda z: z * power

    for first in range(20, 30):  # after any number of replays
        both(model, lambda i, first=first: (batch(0), of(1 + (i >= first))), 32)


@pytest.mark.parametrize("kind", [Namespace, SimpleNamespace, Options, Settings])
def test_namespaces_and_dataclasses_among_the_arguments_are_read_at_every_step(kind: Any) -> None:
    def model(x: Tensor, options: Any) -> None:
        with pyro.poutine.scale(scale=options.beta):
            observe(x + options.shift, 1.0 if options.kind == "normal" else 3.0)

    def calls(i: int) -> tuple[Any, ...]:
        options = kind(beta=0.1 * (i + 1), shift=torch.tensor(float(i)), kind="wide" if i % 4 else "normal")
        return batch(i), options if kind is not Settings else kept.follow(options)

    kept = Settings(beta=1.0, shift=torch.tensor(0.0), kind="normal")
    svi = both(model, calls, 16)
    assert svi.engine == "captured"
    assert not svi.reasons


def test_covariances_are_checked_as_in_pyro_without_numbers_being_taken() -> None:
    def model(x: Tensor, scale: Tensor) -> None:
        observe(x)
        covariance = scale * torch.eye(2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=torch.ones(2))

    svi = both(model, lambda i: (batch(i), torch.tensor(1.0 + i)))
    assert svi.engine == "captured"
    assert not svi.reasons
    with pytest.raises(ValueError, match="covariance_matrix"):
        svi.step(batch(0), torch.tensor(-1.0))
