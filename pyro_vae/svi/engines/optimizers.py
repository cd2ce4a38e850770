"""The optimizer and the schedule that a fit asks for, and the learning rates of steps to come."""

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_vae.arguments import kind
from pyro_vae.batches.batches import Batch
from pyro_vae.guides.heads import raw_parameters
from pyro_vae.pairs.isolation import Program, owner
from pyro_vae.pairs.modes import meeting_modules
from pyro_vae.pairs.parameters import trainable_parameters
from pyro_vae.pairs.running import set_up
from pyro_vae.svi.engines.steps import CannotError, Task
from pyro_vae.svi.objectives.augmented import Augmented
from pyro_vae.svi.objectives.elbo import ELBO, Objective
from pyro_vae.svi.objectives.whole_data import WholeData
from pyro_vae.svi.parallel.ranks import OneProcess


@dataclass(frozen=True)
class Optimization:
    """What ``fit`` is asked for about its steps, whatever the pair; see its parameters."""

    objective: Objective = field(default_factory=ELBO)
    optimizer: Callable[..., Optimizer] | None = None
    schedule: Callable[[Optimizer], LRScheduler] | None = None
    lr: float = 1e-3
    lr_multiplier: str | None = None
    max_norm: float | None = None

    def of(
        self, model: Program, guide: Program, first: Batch, ranks: OneProcess | None = None
    ) -> tuple[Task, float]:
        """Run a pair once on its first batch, and make what its steps work on; and the floating-point
        operations of a step."""
        ranks = OneProcess() if ranks is None else ranks
        drawn = self.objective.batch(first) if isinstance(self.objective, Augmented) else first
        called: list[nn.Module] = []
        functions = owner(model) is None or owner(guide) is None
        with meeting_modules(called.append) if functions else nullcontext():
            count, flops = set_up(model, guide, drawn)
        if isinstance(self.objective, WholeData):
            count = self.objective.count
        parameters = trainable_parameters(model, guide, pyro.get_param_store().get_state())
        rescaled = count(first) != len(first[0])
        own = self.objective.objective if isinstance(self.objective, WholeData) else self.objective
        ranks.begin(model, guide, own, parameters, first, rescaled=rescaled)
        made = make_optimizer(self.optimizer, parameters, guide, self.lr, self.lr_multiplier)
        schedule = make_schedule(self.schedule, made)
        task = Task(
            model,
            guide,
            self.objective,
            parameters,
            made,
            schedule,
            self.max_norm,
            count,
            ranks=ranks,
            called=called,
        )
        return task, flops


def make_optimizer(
    factory: Callable[..., Optimizer] | None,
    parameters: dict[str, Tensor],
    guide: Program,
    lr: float,
    lr_multiplier: str | None,
) -> Optimizer:
    """Make the optimizer; under ``lr_multiplier="matched"`` the raw scales are a group each, with rate lr /
    slope.

    Adam divides a gradient by its own size plus eps. The gradient of raw is that of log σ times the slope, so
    eps takes the slope too: then the step of raw is that of log σ / slope, exactly, and log σ moves as it
    would if the optimizer moved it itself.
    """
    factory = functools.partial(torch.optim.Adam, fused=True) if factory is None else factory
    slopes = _raw_slopes(guide) if lr_multiplier == "matched" else {}
    plain = [parameter for parameter in parameters.values() if id(parameter) not in slopes]
    made = factory([{"params": plain}] if plain else [], lr=lr)
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer made {kind(made)}; let it return a torch.optim.Optimizer")
    if isinstance(made, torch.optim.LBFGS):
        raise TypeError(
            "optimizer made an LBFGS, which runs the loss several times in a step, with one noise; give an "
            "optimizer that takes a gradient, such as torch.optim.Adam"
        )
    if isinstance(made, torch.optim.SparseAdam):
        raise TypeError(
            "optimizer made a SparseAdam, which takes sparse gradients alone; give torch.optim.Adam, or an "
            "Embedding with sparse=False"
        )
    for parameter in parameters.values():
        if id(parameter) in slopes:
            slope = slopes[id(parameter)]
            group: dict[str, Any] = {"params": [parameter], "lr": lr / slope}
            if "eps" in made.defaults:
                group["eps"] = made.defaults["eps"] * slope
            made.add_param_group(group)
    return made


def _raw_slopes(guide: Program) -> dict[int, float]:
    """d log σ / d raw at the start, by the identity of each parameter that puts out a raw scale."""
    module = owner(guide)
    pairs = [] if module is None else raw_parameters(module).values()
    return {id(parameter): slope for parameter, slope in pairs}


def make_schedule(
    factory: Callable[[Optimizer], LRScheduler] | None, optimizer: Optimizer
) -> LRScheduler | None:
    """Make the schedule, where there is one."""
    made = None if factory is None else factory(optimizer)
    if made is not None and not isinstance(made, LRScheduler):
        raise TypeError(f"schedule made {kind(made)}; let it return a torch.optim.lr_scheduler.LRScheduler")
    if isinstance(made, ReduceLROnPlateau):
        raise TypeError(
            "schedule made a ReduceLROnPlateau, which waits for a loss, and schedules advance by the step; "
            "give one that needs the step alone, such as CosineAnnealingLR, or stop by patience="
        )
    return made


def check_length(schedule: LRScheduler | None, steps: int) -> None:
    """Raise a ValueError if a schedule ends before a fit of so many steps does."""
    most = getattr(schedule, "total_steps", None)
    if isinstance(schedule, OneCycleLR) and isinstance(most, int) and most < steps:
        raise ValueError(
            f"schedule made {kind(schedule)} of {most} steps, and this fit takes {steps}; give "
            f"total_steps={steps}, or steps={most}"
        )


def constant_rates(optimizer: Optimizer, steps: int) -> Tensor:
    """(steps, groups of the optimizer): the rates as they are now, for every step."""
    return torch.tensor([_rates_now(optimizer)], dtype=torch.float64).expand(steps, -1)


def _rates_now(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


class RatesAhead:
    """A schedule that is asked for many rates at once and then told how many of them were used.

    Schedules advance once per step that changed the parameters. How many of the steps of a call will, nobody
    knows before, so the schedule goes ahead for all of them, and comes back where some were not finite.
    """

    def __init__(self, optimizer: Optimizer, schedule: LRScheduler) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules warn where step() never was
        self._before: tuple[dict[str, Any], list[dict[str, Any]]] = {}, []
        self._steps = 0

    def take(self, steps: int) -> Tensor:
        """(steps, groups of the optimizer): the rates of the next steps. Raises CannotError if the schedule
        moves anything but learning rates; it is then where it was."""
        groups = self.optimizer.param_groups
        self._before = copy.deepcopy(self.schedule.state_dict()), [dict(group) for group in groups]
        self._steps = steps
        rates = []
        for _ in range(steps):
            rates.append(_rates_now(self.optimizer))
            self.schedule.step()
            moved = self._moved()
            if moved:
                self.keep(0)
                raise CannotError(f"its schedule moves {', '.join(moved)} of the optimizer")
        return torch.tensor(rates, dtype=torch.float64)

    def _moved(self) -> list[str]:
        """What else of the optimizer is not as before."""
        pairs = zip(self.optimizer.param_groups, self._before[1], strict=True)
        return sorted(
            {
                name
                for group, before in pairs
                for name, value in group.items()
                if name not in ("lr", "params") and value != before[name]
            }
        )

    def keep(self, taken: int) -> None:
        """Go back to where the schedule is after the first ``taken`` of these steps."""
        if taken == self._steps:
            return
        state, settings = self._before
        self.schedule.load_state_dict(state)
        for group, before in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(before)
        for _ in range(taken):
            self.schedule.step()
