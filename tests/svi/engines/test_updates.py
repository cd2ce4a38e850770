"""The direct update equals torch's, and leaves in the optimizer what torch would leave there."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.svi.engines.updates import clipped, make_update, total_norm
from tests import seeds


def leaves() -> list[Tensor]:
    generator = seeds.generator(0)
    return [torch.randn(shape, generator=generator).requires_grad_(True) for shape in ((3, 2), (2,), ())]


def gradients(step: int) -> list[Tensor]:
    generator = seeds.generator(step + 1)
    return [torch.randn(shape, generator=generator) for shape in ((3, 2), (2,), ())]


def fused(parameters: Any, **options: Any) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.1, fused=True, **options)


OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "fused Adam": fused,
    "fused Adam with weight decay": lambda p: fused(p, weight_decay=0.1, betas=(0.5, 0.9), eps=1e-3),
    "fused Adam, maximizing": lambda p: fused(p, maximize=True),
    "fused Adam with groups": lambda p: fused([{"params": p[2:]}, {"params": p[:2], "lr": 0.5, "eps": 1e-2}]),
    "fused AMSGrad": lambda p: fused(p, amsgrad=True),
    "plain Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_equal_the_optimizers_own_under_a_schedule(name: str) -> None:
    ours, theirs = leaves(), leaves()
    one, two = OPTIMIZERS[name](ours), OPTIMIZERS[name](theirs)
    update = make_update(one, ours)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) for optimizer in (one, two)]
    for step in range(5):
        update(gradients(step))
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        two.step()
        for schedule in schedules:
            schedule.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    mine, other = copy.deepcopy(one.state_dict()), two.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    for key, state in other["state"].items():
        for field, value in state.items():
            torch.testing.assert_close(mine["state"][key][field], value)


def test_hooks_are_called() -> None:
    parameters, calls = leaves(), []
    optimizer = fused(parameters)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    make_update(optimizer, parameters)(gradients(0))
    assert calls == [1]


def test_clipping_scales_all_gradients_together_and_none_in_place() -> None:
    given = gradients(0)
    before = [g.clone() for g in given]
    norm = float(total_norm(given))
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in given]).norm()))
    small = clipped(given, norm, 0.5)
    assert float(total_norm(small)) == pytest.approx(0.5)
    assert clipped(given, norm, norm + 1) is given
    assert clipped(given, norm, None) is given
    for a, b in zip(given, before, strict=True):
        assert torch.equal(a, b)
