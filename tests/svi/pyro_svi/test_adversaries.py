"""Programs that change under a captured step in every way that was thought of: ``SVI`` gives Pyro's numbers,
by whatever engine, and ``fit`` those of its eager engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import constraints

import pyro_vae
from pyro_vae import SVI

SETTINGS: dict[str, Any] = {}
SCALE = 1.0


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(()))
    pyro.sample("z", dist.Normal(loc, 1.0))


def observe(x: Tensor, scale: Any = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


class Adversary:
    """A model, what happens before a step, and how its numbers must come out: like Pyro's."""

    model: Callable[[Tensor], None]
    guide: Callable[[Tensor], None] = staticmethod(guide)

    def before(self, step: int, svi: Any) -> None:
        """Whatever changes."""


class EntryOfADict(Adversary):
    def __init__(self) -> None:
        self.options = {"beta": 1.0}

    def model(self, x: Tensor) -> None:
        observe(x, self.options["beta"])

    def before(self, step: int, svi: Any) -> None:
        self.options["beta"] = 1.0 + step // 3


class Closure(Adversary):
    def __init__(self) -> None:
        beta = 1.0

        def model(x: Tensor) -> None:
            observe(x, beta)

        def change(step: int) -> None:
            nonlocal beta
            beta = 1.0 + step // 3

        self.model, self.change = model, change  # type: ignore[method-assign]

    def before(self, step: int, svi: Any) -> None:
        self.change(step)


class GlobalVariable(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x, SCALE)

    def before(self, step: int, svi: Any) -> None:
        global SCALE
        SCALE = 1.0 + step // 3


class AttributeOfAModule(Adversary):
    def __init__(self) -> None:
        self.net = torch.nn.Linear(1, 1)
        self.net.power = 1  # type: ignore[assignment]

    def model(self, x: Tensor) -> None:
        observe(x**self.net.power, 2.0)  # type: ignore[operator]

    def before(self, step: int, svi: Any) -> None:
        self.net.power = 1 + step // 3  # type: ignore[assignment]


class ContentsOfAnArray(Adversary):
    def __init__(self) -> None:
        self.array = np.ones(2)

    def model(self, x: Tensor) -> None:
        observe(x, float(self.array[1]))

    def before(self, step: int, svi: Any) -> None:
        self.array[1] = 1.0 + step // 3


class LengthOfAList(Adversary):
    def __init__(self) -> None:
        self.seen: list[int] = [0]

    def model(self, x: Tensor) -> None:
        observe(x, 1.0 + len(self.seen))

    def before(self, step: int, svi: Any) -> None:
        self.seen[:] = range(1 + step // 3)


class ItemOfTheData(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x, 1.0 + abs(x[0].item()))


class WholeNumberOfTheData(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x, 1 + int(x.abs().max()))


class TruthOfTheData(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x, 1.0 if bool(x[0] > 0) else 3.0)


class SizeOfASelection(Adversary):
    def model(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=1.0 / (1 + len(x[x > 0]))):
            observe(x)


class NumbersOfPython(Adversary):
    def model(self, x: Tensor) -> None:
        import random

        observe(x, 1.0 + random.random())


class NumbersOfNumpy(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x, 1.0 + float(np.random.rand()))


class SeedInside(Adversary):
    def model(self, x: Tensor) -> None:
        torch.manual_seed(3)
        observe(x)


class NoiseOfItsOwn(Adversary):
    def model(self, x: Tensor) -> None:
        observe(x + torch.rand(()), 1.0)


class ConstraintOfAParameter(Adversary):
    """The same name with another constraint, after the store forgot it."""

    def __init__(self) -> None:
        self.constraint = constraints.positive

    def model(self, x: Tensor) -> None:
        scale = pyro.param("scale", lambda: torch.tensor(0.5), constraint=self.constraint)
        observe(x, scale)

    def before(self, step: int, svi: Any) -> None:
        if step == 4:
            del pyro.get_param_store()["scale"]
            self.constraint = constraints.interval(0.1, 2.0)


class ParameterOfLater(Adversary):
    def __init__(self) -> None:
        self.late = False

    def model(self, x: Tensor) -> None:
        scale = pyro.param("late", torch.tensor(2.0), constraint=constraints.positive) if self.late else 1.0
        observe(x, scale)

    def before(self, step: int, svi: Any) -> None:
        self.late = step >= 4


class LearningRate(Adversary):
    model = staticmethod(observe)

    def before(self, step: int, svi: Any) -> None:
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)


class ValueOfAParameter(Adversary):
    """Set from outside between steps."""

    model = staticmethod(observe)

    def before(self, step: int, svi: Any) -> None:
        if step == 4:
            with torch.no_grad():
                pyro.param("loc").fill_(2.0)


class AnotherGuide(Adversary):
    """A guide that looks at a switch."""

    model = staticmethod(observe)

    def __init__(self) -> None:
        self.wide = False

        def guide(x: Tensor) -> None:
            pyro.sample(
                "z", dist.Normal(pyro.param("loc", lambda: torch.zeros(())), 2.0 if self.wide else 1.0)
            )

        self.guide = guide  # type: ignore[method-assign]

    def before(self, step: int, svi: Any) -> None:
        self.wide = step % 4 == 3


ADVERSARIES = [
    kind
    for kind in globals().values()
    if isinstance(kind, type) and issubclass(kind, Adversary) and kind is not Adversary
]
LEFT_TO_PYRO = (
    ItemOfTheData,
    WholeNumberOfTheData,
    TruthOfTheData,
    SizeOfASelection,
    NumbersOfPython,
    NumbersOfNumpy,
    SeedInside,
)


def batch(step: int) -> Tensor:
    return torch.linspace(-1.0, 2.0, 6) - 0.6 * (step % 4)


def losses(kind: Any, adversary: type[Adversary]) -> tuple[list[float], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    made = adversary()
    svi = kind(made.model, made.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    found = []
    for step in range(9):
        made.before(step, svi)
        found.append(svi.step(batch(step)))
    return found, svi


@pytest.mark.parametrize("adversary", ADVERSARIES, ids=lambda kind: kind.__name__)
def test_svi_gives_pyros_numbers(adversary: type[Adversary], caplog: pytest.LogCaptureFixture) -> None:
    theirs, _ = losses(pyro.infer.SVI, adversary)
    ours, svi = losses(SVI, adversary)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)
    assert svi.engine == ("pyro" if adversary in LEFT_TO_PYRO else "captured"), svi.reasons
    if svi.engine == "pyro":
        assert svi.reasons
        assert svi.reasons[0] in caplog.text


def test_a_model_that_prints_prints_when_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def model(x: Tensor) -> None:
        print("running")
        observe(x)

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for step in range(3):
        svi.step(batch(step))
    assert svi.engine == "captured"
    before = capsys.readouterr().out.count("running")
    assert before >= 2
    svi.step(batch(3))
    assert capsys.readouterr().out.count("running") <= 1


CALLBACKS = (EntryOfADict, Closure, GlobalVariable, AttributeOfAModule, ContentsOfAnArray, LengthOfAList)


@pytest.mark.parametrize(
    "adversary", [*CALLBACKS, *LEFT_TO_PYRO[:4], NoiseOfItsOwn], ids=lambda kind: kind.__name__
)
def test_fit_gives_the_numbers_of_its_eager_engine(adversary: type[Adversary]) -> None:
    x = torch.linspace(-1.0, 2.0, 12)
    found = []
    for engine in ("eager", "captured"):
        made = adversary()
        made.before(0, None)

        def change(record: Any, made: Adversary = made) -> None:
            made.before(record.step // 2, None)

        fitted = pyro_vae.fit(
            lambda x, made=made: made.model(x),
            lambda x: guide(x),
            x,
            steps=20,
            batch_size=12,
            objective=Trace_ELBO(),
            engine=engine,
            callbacks=[change],
            progress=False,
        )
        found.append(torch.tensor(fitted.history["loss"].values))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
