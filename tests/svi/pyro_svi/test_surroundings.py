"""Whatever a program may read around itself, a captured step follows its changes, or Pyro takes the step."""

import collections
import itertools
import random
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_vae import SVI

CHANGES_AT, BACK_AT, STEPS = 6, 11, 16


class Case(NamedTuple):
    """A model, and what is done at some step: change something, or take it back."""

    model: Callable[..., Any]
    change: Callable[[bool], Any] = lambda changed: None
    loss: Any = None


def observe(x: Tensor, scale: Any = 1.0, factor: Any = 1.0) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(factor * z, scale), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.zeros(())), 1.0))


def of_a_set() -> Case:
    words: set[str] = set()
    return Case(
        lambda x: observe(x, 2.0 if "wide" in words else 1.0),
        lambda changed: words.add("wide") if changed else words.clear(),
    )


def of_a_deque() -> Case:
    scales = collections.deque([1.0], maxlen=3)
    return Case(lambda x: observe(x, sum(scales) / len(scales)), lambda changed: scales.append(2.0 + changed))


def of_a_long_list() -> Case:
    scales = [1.0] * 400
    return Case(lambda x: observe(x, scales[300]), lambda changed: scales.__setitem__(300, 1.0 + changed))


def of_an_attribute_of_a_function() -> Case:
    def scale() -> float:
        return scale.value  # type: ignore[attr-defined, no-any-return]

    scale.value = 1.0  # type: ignore[attr-defined]
    return Case(lambda x: observe(x, scale()), lambda changed: setattr(scale, "value", 1.0 + changed))


def of_a_thread() -> Case:
    local = threading.local()
    local.scale = 1.0
    return Case(lambda x: observe(x, local.scale), lambda changed: setattr(local, "scale", 1.0 + changed))


class Linked:
    """A model as an object, with a method that may be replaced in the object or in the class."""

    def link(self, z: Tensor) -> Tensor:
        return z

    def __call__(self, x: Tensor) -> None:
        observe(x, factor=self.link(torch.ones(())))


def of_a_method_of_an_object() -> Case:
    model = Linked()
    return Case(model, lambda changed: vars(model).update(link=lambda z: (2.0 + changed) * z))


def of_a_method_of_a_class() -> Case:
    class Own(Linked):
        def link(self, z: Tensor) -> Tensor:
            return z

    return Case(Own(), lambda changed: setattr(Own, "link", lambda self, z: (2.0 + changed) * z))


def of_hooks() -> Case:
    net, handles = nn.Identity(), []

    def change(changed: bool) -> None:
        if changed:
            handles.append(net.register_forward_hook(lambda module, args, result: 2.0 * result))
        else:
            handles.pop().remove()

    return Case(lambda x: observe(net(x)), change)


def of_layers_that_are_added() -> Case:
    net = nn.Sequential(nn.Tanh())
    return Case(
        lambda x: observe(net(x)), lambda changed: net.append(nn.Sigmoid()) if changed else net.pop(1)
    )


def of_a_parameter_that_is_frozen_for_a_while() -> Case:
    net = nn.Linear(5, 5)
    nn.init.eye_(net.weight)
    nn.init.zeros_(net.bias)
    net.eval()  # Pyro warns of frozen parameters of modules that train

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        observe(net(x))

    return Case(model, lambda changed: net.weight.requires_grad_(not changed))


def of_code_without_a_file() -> Case:
    space: dict[str, Any] = {"observe": observe, "scale": 1.0}
    exec("def model(x):\n    observe(x, scale)", space)
    return Case(space["model"], lambda changed: space.update(scale=1.0 + changed))


def of_a_distribution_that_is_edited() -> Case:
    noise = dist.Normal(torch.tensor(0.0), torch.tensor(1.0))
    return Case(
        lambda x: observe(x, 1.0 + noise.scale),
        lambda changed: setattr(noise, "scale", torch.tensor(1.0 + changed)),
    )


def of_a_transform_that_is_edited() -> Case:
    widen = dist.transforms.AffineTransform(0.0, 1.0)
    return Case(
        lambda x: observe(x, widen(torch.ones(()))), lambda changed: setattr(widen, "scale", 1.0 + changed)
    )


def of_a_dict_of_a_class() -> Case:
    class Settings:
        scales: ClassVar = {"x": 1.0}

    return Case(
        lambda x: observe(x, Settings.scales["x"]), lambda changed: Settings.scales.update(x=1.0 + changed)
    )


def of_a_module_that_is_imported_inside() -> Case:
    settings: Any = ModuleType("settings_of_a_test")
    settings.__file__, settings.scale = "settings_of_a_test.py", 1.0
    sys.modules[settings.__name__] = settings

    def model(x: Tensor) -> None:
        from settings_of_a_test import scale  # type: ignore[import-not-found]

        observe(x, scale)

    return Case(model, lambda changed: setattr(settings, "scale", 1.0 + changed))


def of_a_function_that_is_loaded_again() -> Case:
    def scale() -> float:
        return 1.0

    def other() -> float:
        return 2.0

    first, second = scale.__code__, other.__code__
    return Case(
        lambda x: observe(x, scale()),
        lambda changed: setattr(scale, "__code__", second if changed else first),
    )


x = pd.DataFrame()
"""Named as a site is, and read by no program."""


def of_a_global_that_only_a_site_is_named_like() -> Case:
    return Case(observe)


def of_the_loss() -> Case:
    loss = Trace_ELBO()
    return Case(observe, lambda changed: setattr(loss, "num_particles", 1 + 4 * changed), loss)


def of_an_iterator() -> Case:
    scales = itertools.cycle([1.0, 1.5, 2.0, 2.5, 3.0])
    return Case(lambda x: observe(x, next(scales)))


def of_a_random_generator_of_numpy() -> Case:
    stream = np.random.default_rng(0)
    return Case(lambda x: observe(x, 1.0 + stream.random()))


def of_a_random_generator_of_python() -> Case:
    stream = random.Random(0)
    return Case(lambda x: observe(x, 1.0 + stream.random()))


def of_a_random_generator_of_torch() -> Case:
    stream = torch.Generator().manual_seed(0)
    return Case(lambda x: observe(x + torch.randn(5, generator=stream)))


def of_a_table() -> Case:
    table = pd.DataFrame({"scale": [1.0]})
    return Case(
        lambda x: observe(x, float(table["scale"].iloc[0])),
        lambda changed: table.__setitem__("scale", [1.0 + changed]),
    )


def of_an_object_with_slots() -> Case:
    class Settings:
        __slots__ = ("scale",)
        scale: float

    settings = Settings()
    settings.scale = 1.0
    return Case(
        lambda x: observe(x, settings.scale), lambda changed: setattr(settings, "scale", 1.0 + changed)
    )


FOLLOWED = (
    of_a_set,
    of_a_deque,
    of_a_long_list,
    of_an_attribute_of_a_function,
    of_a_thread,
    of_a_method_of_an_object,
    of_a_method_of_a_class,
    of_hooks,
    of_layers_that_are_added,
    of_a_parameter_that_is_frozen_for_a_while,
    of_code_without_a_file,
    of_a_distribution_that_is_edited,
    of_a_transform_that_is_edited,
    of_a_dict_of_a_class,
    of_a_module_that_is_imported_inside,
    of_a_function_that_is_loaded_again,
    of_a_global_that_only_a_site_is_named_like,
    of_the_loss,
)
LEFT_TO_PYRO = (
    of_an_iterator,
    of_a_random_generator_of_numpy,
    of_a_random_generator_of_python,
    of_a_random_generator_of_torch,
    of_a_table,
    of_an_object_with_slots,
)


def losses_and_svi(kind: Any, make: Callable[[], Case]) -> tuple[list[float], Any]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    case = make()
    svi = kind(case.model, guide, pyro.optim.Adam({"lr": 0.1}), case.loss or Trace_ELBO())
    losses = []
    for i in range(STEPS):
        if i in (CHANGES_AT, BACK_AT):
            case.change(i == CHANGES_AT)
        losses.append(svi.step(torch.arange(5.0) - i))
    return losses, svi


@pytest.mark.parametrize("make", [*FOLLOWED, *LEFT_TO_PYRO], ids=lambda make: make.__name__)
def test_changes_around_a_program_are_followed(make: Callable[[], Case]) -> None:
    losses, _ = losses_and_svi(pyro.infer.SVI, make)
    ours, svi = losses_and_svi(SVI, make)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    assert svi.engine == ("captured" if make in FOLLOWED else "pyro"), svi.reasons
    if make in LEFT_TO_PYRO:
        assert "whenever it runs" in svi.reasons[0] or "may change unseen" in svi.reasons[0]
