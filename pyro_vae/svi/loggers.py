"""Callbacks of a fit that tell TensorBoard or Weights & Biases; neither is imported here."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pyro_vae.arguments import kind
from pyro_vae.svi.history import EpochRecord

Callback = Callable[[EpochRecord], None]


def to_tensorboard(writer: Any, prefix: str = "fit/") -> Callback:
    """A callback that writes loss, KL, reconstruction, gradient norm and held-out loss after every epoch, at
    the number of steps, in nats per observation.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``, or whatever has its ``add_scalar(tag, value, step)``.
    prefix
        Before every name.

    Raises
    ------
    TypeError
        If ``writer`` has no such method.

    Examples
    --------
    ``fit(model, guide, x, epochs=50, callbacks=[to_tensorboard(SummaryWriter("runs/one"))])``
    """
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(f"writer is {kind(writer)}; give a SummaryWriter: it has add_scalar")

    def write(record: EpochRecord) -> None:
        for name, value in _scalars(record).items():
            writer.add_scalar(prefix + name, value, record.step)

    return write


def to_wandb(run: Any, prefix: str = "fit/") -> Callback:
    """A callback that logs the same to a run of Weights & Biases.

    Parameters
    ----------
    run
        What ``wandb.init(...)`` returns, or whatever has its ``log(values, step=)``.
    prefix
        Before every name.

    Raises
    ------
    TypeError
        If ``run`` has no such method.

    Examples
    --------
    ``fit(model, guide, x, epochs=50, callbacks=[to_wandb(wandb.init(project="digits"))])``
    """
    if not callable(getattr(run, "log", None)):
        raise TypeError(f"run is {kind(run)}; give what wandb.init returns: it has log")
    return lambda record: run.log({prefix + k: v for k, v in _scalars(record).items()}, step=record.step)


def _scalars(record: EpochRecord) -> dict[str, float]:
    """What there is: without validation there is no held-out loss."""
    values = {name: value for name, value in asdict(record).items() if name not in ("epoch", "step")}
    return {name: float(value) for name, value in values.items() if not math.isnan(value)}
