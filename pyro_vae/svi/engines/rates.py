"""The learning rates of steps to come, for a call that takes many of them."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RatesAhead", "constant_rates"]


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
        """(steps, groups of the optimizer): the rates of the next steps.

        Raises
        ------
        ValueError
            If the schedule moves anything but learning rates; it is then where it was.
        """
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
                raise ValueError(f"its schedule moves {', '.join(moved)} of the optimizer")
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
        """Only the first so many steps were taken."""
        if taken == self._steps:
            return
        state, settings = self._before
        self.schedule.load_state_dict(state)
        for group, before in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(before)
        for _ in range(taken):
            self.schedule.step()
