"""What the arguments of a fit must be."""

import inspect
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from pyro.optim import PyroOptim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.svi.engines import ENGINES
from pyro_vae.svi.objective import Objective

__all__ = [
    "check_choices",
    "check_numbers",
    "check_optimizer",
    "check_programs",
    "check_schedule",
    "parameters_of",
]

OPTIONAL = ("epochs", "steps", "patience", "max_norm")
SEEDS = 2**63


def check_programs(**programs: Any) -> None:
    """Raise a TypeError that names the first argument that is not a Pyro program."""
    for name, program in programs.items():
        if isinstance(program, type):
            raise TypeError(
                f"{name} is the class {program.__name__}; call it, {name}={program.__name__}(...)"
            )
        if not callable(program):
            raise TypeError(
                f"{name} is a {type(program).__name__}; give a Pyro program: a PyroModule or a function"
            )


def check_choices(
    *, objective: Any, engine: Any, lr_multiplier: Any, optimizer: Any, schedule: Any, callbacks: Any
) -> None:
    """Raise an error that names the first argument that is none of its choices."""
    if isinstance(objective, type) or not isinstance(objective, Objective):
        given = f"the class {objective.__name__}" if isinstance(objective, type) else type(objective).__name__
        raise TypeError(f"objective is {given}; give an objective such as pyro_vae.svi.ELBO() or IWAE(8)")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; give one of {', '.join(map(repr, ENGINES))}")
    if lr_multiplier not in (None, "matched"):
        raise ValueError(f"lr_multiplier is {lr_multiplier!r}; give None or 'matched'")
    if optimizer is not None and (isinstance(optimizer, PyroOptim) or not callable(optimizer)):
        article = "an" if type(optimizer).__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"optimizer is {article} {type(optimizer).__name__}; give what makes one of torch's, such as "
            "torch.optim.Adam, torch.optim.AdamW or functools.partial(torch.optim.SGD, momentum=0.9)"
        )
    if schedule is not None and not callable(schedule):
        raise TypeError(
            f"schedule is a {type(schedule).__name__}; give a function of the optimizer that makes one, such "
            "as lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)"
        )
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks is a {type(callbacks).__name__}; give a list, [callback]")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}] is {callback!r}; give a function of an EpochRecord")


def check_optimizer(made: Any) -> None:
    """Raise a TypeError unless what ``optimizer`` has made is an optimizer."""
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer made a {type(made).__name__}; let it return a torch.optim.Optimizer")


def check_schedule(made: Any) -> None:
    """Raise a TypeError unless what ``schedule`` has made is a schedule."""
    if not isinstance(made, LRScheduler):
        raise TypeError(
            f"schedule made a {type(made).__name__}; let it return a torch.optim.lr_scheduler.LRScheduler"
        )


def check_numbers(**numbers: Any) -> None:
    """Raise a ValueError that names the first argument that is not the number it has to be."""
    for name, value in numbers.items():
        if value is None and name in OPTIONAL:
            continue
        whole, seed = name not in ("lr", "max_norm"), name.startswith("seed")
        good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if good and math.isfinite(value) and (0 <= value < SEEDS if seed else value > 0):
            continue
        needed = f"a positive {'integer' if whole else 'number'}"
        if seed:
            needed = "an integer of at least 0 and less than 2**63"
        raise ValueError(f"{name} is {value!r}; give {needed}")


def parameters_of(function: Any) -> list[str]:
    """The names of a function's keyword-only arguments."""
    signature = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
