"""Put a pair and its data on a device, or find out that it cannot follow there."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.batches.batches import Batch, Batches
from pyro_vae.devices import making_tensors_on
from pyro_vae.pairs.isolation import (
    Program,
    empty_store,
    evaluating,
    isolated,
    modules_of,
    owner,
    training_mode,
)

logger = logging.getLogger(__name__)

_OF_DEVICES = ("device", "weight type")
"""What torch says of tensors on two devices has one of these in it."""


class ParametersFollow(Messenger):
    """Moves the tensors of ``pyro.param`` and ``pyro.module`` statements to a device, in place: the modules
    that a plain function registers there can be found nowhere else.

    Examples
    --------
    >>> import pyro
    >>> layer = torch.nn.Linear(2, 3)
    >>> with isolated(print, print), ParametersFollow(torch.device("cpu")):
    ...     _ = pyro.module("layer", layer)
    >>> layer.weight.device
    device(type='cpu')
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def _pyro_param(self, msg: Any) -> None:
        value = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(value, Tensor) and value.device.type != self.device.type:
            value.data = value.data.to(self.device)


def placed(
    model: Program,
    guide: Program,
    run: Callable[[Batch], object],
    batches: Callable[[torch.device], Batches],
    device: torch.device,
    *,
    seed: int,
    optional: bool,
) -> tuple[torch.device, Batches]:
    """Put a pair on a device: modules, and what plain functions name by ``pyro.param`` and ``pyro.module``.

    Parameters
    ----------
    model, guide
        The pair.
    run
        A first run of it on a batch.
    batches
        Makes those of the data on a device.
    device
        The device wished for.
    seed
        Of the first run, in which lazy parameters are made.
    optional
        Whether the CPU will do where the pair mixes tensors of both devices, because it holds some that are
        neither parameters nor buffers. The log says so.

    Returns
    -------
    tuple
        The device that it is on now, and the batches there.
    """
    for module in modules_of(model, guide):
        module.to(device)
    made = batches(device)
    if device.type == "cpu":
        return device, made
    first = made.first()
    _let_parameters_follow(model, guide, first, seed)
    reason = _mixing(model, guide, run, first, seed) if optional else ""
    if not reason:
        return device, made
    logger.warning(
        "this fit runs on the CPU, since its model and guide mix devices on %s (%s); hold tensors as "
        "parameters or buffers, or make everything after torch.set_default_device('%s')",
        device.type,
        reason,
        device.type,
    )
    device = torch.device("cpu")
    for module in modules_of(model, guide):
        module.to(device)
    made = batches(device)
    _let_parameters_follow(model, guide, made.first(), seed)
    return device, made


def _let_parameters_follow(model: Program, guide: Program, batch: Batch, seed: int) -> None:
    """Run the plain functions once, the model first: guides may run it where no handler sees it."""
    device = batch[0].device
    for program in (model, guide):
        if owner(program) is None:
            with (
                suppress(Exception),  # what is wrong with them is told later
                torch.no_grad(),
                isolated(model, guide, state=empty_store(), seed=seed),
                evaluating(model, guide),
                making_tensors_on(device),
                poutine.block(),
                ParametersFollow(device),
            ):
                program(*batch)


def _mixing(model: Program, guide: Program, run: Callable[[Batch], object], batch: Batch, seed: int) -> str:
    """What torch says if a first run mixes devices. Other errors are told when the fit runs the pair."""
    try:
        with (
            torch.no_grad(),
            isolated(model, guide, state=empty_store(), seed=seed),
            training_mode((model, guide), training=False),  # running statistics stay as they are
        ):
            run(batch)
    except torch.OutOfMemoryError:
        return ""
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().split("\n")[0].rstrip(".")
        return reason if any(word in reason for word in _OF_DEVICES) else ""
    return ""
