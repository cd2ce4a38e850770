"""Take out the whole state of a fit that is under way, and put it back to go on."""

import hashlib
import logging
import math
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.batches.batches import ArrayBatches, Batches, LoaderBatches
from pyro_vae.batches.files import row_chunks
from pyro_vae.batches.rows import Rows
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.pairs.settings import set_settings, settings_of
from pyro_vae.storage.plain import tensor_bytes
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loop import Loop

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what a state holds; a reader refuses a newer one."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class FitState:
    """Everything that belongs to the state of a fit, in the loop and around it.

    Parameters
    ----------
    loop, batches, callbacks
        Of the fit, before its first step. Of callbacks, those that have ``state_dict`` and
        ``load_state_dict``.
    identity
        What must be equal of two fits if one is to go on as the other
        (:func:`identity_of`).
    seconds_before
        How long the fit had run when it was interrupted.
    """

    def __init__(
        self,
        loop: Loop,
        batches: Batches,
        callbacks: Sequence[Callable[[EpochRecord], None]],
        identity: dict[str, Any],
        seconds_before: float,
    ) -> None:
        self.loop, self.batches, self.identity = loop, batches, identity
        self.callbacks: list[Any] = [one for one in callbacks if hasattr(one, "state_dict")]
        self.identity["callbacks with a state"] = [type(callback).__name__ for callback in self.callbacks]
        self.started = time.perf_counter() - seconds_before
        self.device = loop.task.device
        self.settings = settings_of(loop.task.model, loop.task.guide)
        self.generators = _generators(batches)

    def content(self) -> dict[str, Any]:
        """It all as plain values and tensors, as it is now."""
        return {
            "schema": SCHEMA,
            "torch": torch.__version__,
            "identity": self.identity,
            "engine": self.loop.engine,
            "seconds": time.perf_counter() - self.started,
            "loop": self.loop.state(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "settings": (self.settings, settings_of(self.loop.task.model, self.loop.task.guide)),
            "generators": [generator.get_state() for generator in self.generators],
            "streams": _streams(self.device),
            "probe": self._probe(),
        }

    @property
    def can_go_on_from_here(self) -> bool:
        """A loader with a stream of its own cannot draw the order of a running epoch again."""
        return self.loop.position == 0 or not self.generators

    def restore(self, found: dict[str, Any], steps: int) -> None:
        """Go back to where a state was taken, in a fit that is to end at step ``steps``. Raises ValueError if
        it is another fit's, with the rest of a sentence about its checkpoint. What was restored by then stays
        so."""
        other = difference(found["identity"], self.identity)
        if other is not None:
            raise ValueError(f"is of another fit: {other}; name another file, or remove it to begin anew")
        self._check_length(found["loop"]["step"], found["loop"]["position"], steps, found)
        if found["torch"] != torch.__version__:
            logger.warning(
                "the fit began under torch %s and goes on under %s, so its numbers may differ in the last "
                "bits from those of a fit that was never interrupted",
                found["torch"],
                torch.__version__,
            )
        self._restore_settings(*found["settings"])
        self.loop.restore(found["loop"])
        for callback, state in zip(self.callbacks, found["callbacks"], strict=True):
            callback.load_state_dict(state)
        for generator, state in zip(self.generators, found["generators"], strict=True):
            generator.set_state(state)
        _set_streams(found["streams"], self.device)
        probe = self._probe()
        alike = math.isclose(probe, found["probe"], rel_tol=1e-4, abs_tol=1e-6)
        if not alike and not (math.isnan(probe) and math.isnan(found["probe"])):
            raise ValueError(
                f"is of another fit: with its parameters this pair has a loss of {probe:.6g} nats per "
                f"observation on the first batch, and there it was {found['probe']:.6g}; the model, the "
                "guide or the objective has changed"
            )

    def _check_length(self, step: int, position: int, steps: int, found: dict[str, Any]) -> None:
        if step > steps:
            raise ValueError(
                f"is at step {step} already, and this fit ends at {steps}; give more epochs or steps"
            )
        epochs = len(found["loop"]["recorder"]["epochs"])
        if step < steps and step != epochs * len(self.batches) + position:
            raise ValueError(
                f"is of a fit that ended within an epoch, at step {step}, so it cannot go on to step "
                f"{steps}; give steps={step} to have it as it is, or name another file"
            )

    def _restore_settings(self, first: dict[str, Any], last: dict[str, Any]) -> None:
        """Plain numbers and words on the modules: what training had changed is put back; what it had not must
        be what it was."""
        here = self.settings
        steady = {name: value for name, value in first.items() if last.get(name, value) == value}
        other = difference(steady, {name: here.get(name) for name in steady})
        if other is not None:
            raise ValueError(f"is of another fit: {other}; name another file, or remove it to begin anew")
        changed = {name: value for name, value in last.items() if name not in steady}
        set_settings(self.loop.task.model, self.loop.task.guide, changed)

    def _probe(self) -> float:
        """The loss of a fixed batch and noise, by which a changed program shows itself."""
        if isinstance(self.batches, LoaderBatches):
            return math.nan
        model, guide = self.loop.task.model, self.loop.task.guide
        before = settings_of(model, guide)
        loss = self.loop.loss_on(self.batches.first())
        set_settings(model, guide, before)
        return loss


def _streams(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's random streams that a fit draws from."""
    streams = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        streams[device.type] = _stream_of(device).get_rng_state(device)
    return streams


def _set_streams(streams: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(streams["cpu"])
    if device.type != "cpu":
        _stream_of(device).set_rng_state(streams[device.type], device)


def _stream_of(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _generators(batches: Batches) -> list[torch.Generator]:
    """Streams of a loader's own, which advance with every epoch."""
    if not isinstance(batches, LoaderBatches):
        return []
    loader = batches.loader
    owners = (loader, loader.sampler, getattr(loader, "batch_sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    distinct = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(distinct.values())


def identity_of(loop: Loop, batches: Batches, validation: tuple[Tensor, ...] | None, **options: Any) -> Any:
    """What a fit is, in words and numbers: its arguments, structure and data.

    How long it runs is not part of it: a fit of 100 epochs may go on to 200.
    """
    task, schedule = loop.task, loop.task.schedule
    return {
        **{name: _told(value) for name, value in options.items()},
        "objective": _told(task.objective),
        "max_norm": task.max_norm,
        "patience": None if loop.stopping is None else loop.stopping.patience,
        "modules": [
            f"{type(module).__name__} {path}".strip()
            for root in modules_of(task.model, task.guide)
            for path, module in root.named_modules()
        ],
        "parameters and buffers": [
            f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in loop.tensors().items()
        ],
        "optimizer": type(task.optimizer).__name__,
        "schedule": None if schedule is None else type(schedule).__name__,
        "settings of the schedule": [] if schedule is None else _entries(schedule.state_dict()),
        "settings of the optimizer": [
            f"{entry} of group {i}"
            for i, group in enumerate(task.optimizer.state_dict()["param_groups"])
            for entry in _entries(group)
        ],
        "data": f"{batches.observations} observations in {len(batches)} batches, {fingerprint(batches)}",
        "validation data": None if validation is None else _digest(validation),
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two identities differ, as a sentence; None if there is none."""
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, list) and isinstance(new, list):
            first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
            i = min(len(old), len(new)) if first is None else first
            old, new = (items[i] if i < len(items) else "missing" for items in (old, new))
        if old != new:
            old, new = (textwrap.shorten(str(value), 120) for value in (old, new))
            if isinstance(now.get(name, before.get(name)), list) or name.endswith("data"):
                return f"its {name} were {old}, and here they are {new}"
            return f"its {name} was {old}, and here it is {new}"
    return None


def fingerprint(batches: Batches) -> str:
    """Of tensors and memory-mapped arrays a checksum; what a loader will give is not known beforehand."""
    return f"checksum {_digest(batches.rows)}" if isinstance(batches, ArrayBatches) else "from a loader"


def _digest(rows: tuple[Rows, ...]) -> str:
    digest = hashlib.sha256()
    for part in rows:
        digest.update(f"{tuple(part.shape)} {part[:1].dtype}".encode())
        for chunk in row_chunks(part):
            digest.update(tensor_bytes(part[chunk].cpu()))
    return digest.hexdigest()[:16]


def _entries(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_told(value)}" for name, value in settings.items()]


def _told(value: Any) -> str:
    """A value in words, without where it lies in memory."""
    return ADDRESS.sub("", repr(value))
