"""What the options of a fit must be."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.optim import PyroOptim

from pyro_vae.arguments import brief, check_numbers, kind
from pyro_vae.svi.engines.choice import ENGINES
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.objectives.pyro_elbo import as_objective

NUMBERS = ("epochs", "steps", "batch_size", "lr", "seed", "patience", "max_norm")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise an error that names the first option of ``fit`` that cannot be used; what is not among them is
    left at its default."""
    check_numbers(**{name: options[name] for name in NUMBERS if name in options})
    objective, engine = as_objective(options.get("objective")), options.get("engine", "auto")
    lr_multiplier, optimizer = options.get("lr_multiplier"), options.get("optimizer")
    schedule, callbacks = options.get("schedule"), options.get("callbacks", ())
    if isinstance(objective, type) or not isinstance(objective, Objective):
        given = f"the class {objective.__name__}" if isinstance(objective, type) else type(objective).__name__
        raise TypeError(f"objective is {given}; give an objective such as pyro_vae.svi.ELBO() or IWAE(8)")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ValueError(f"engine is {brief(engine)}; give one of {', '.join(map(repr, ENGINES))}")
    if lr_multiplier not in (None, "matched"):
        raise ValueError(f"lr_multiplier is {brief(lr_multiplier)}; give None or 'matched'")
    if optimizer is not None and (isinstance(optimizer, PyroOptim) or not callable(optimizer)):
        article = "an" if type(optimizer).__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"optimizer is {article} {type(optimizer).__name__}; give what makes one of torch's, such as "
            "torch.optim.Adam, torch.optim.AdamW or functools.partial(torch.optim.SGD, momentum=0.9)"
        )
    if schedule is not None and not callable(schedule):
        raise TypeError(
            f"schedule is {kind(schedule)}; give a function of the optimizer that makes one, such "
            "as lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)"
        )
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks is {kind(callbacks)}; give a list, [callback]")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}] is {brief(callback)}; give a function of an EpochRecord")
    if options.get("patience") is not None and options.get("validation") is None:
        raise ValueError(
            f"patience is {options['patience']} without validation data to watch; give validation="
        )
