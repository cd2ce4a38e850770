"""The whole state of a fit that is under way, in its loop and around it: taken out, and put back to go on."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pyro_vae.batches.batches import Batches, LoaderBatches
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loop import Loop
from pyro_vae.svi.state.identity import difference

__all__ = ["SCHEMA", "FitState"]

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what a state holds; a reader refuses a newer one."""


class FitState:
    """Everything that belongs to the state of a fit, in the loop and around it.

    Parameters
    ----------
    loop, batches, callbacks
        Of the fit, before its first step. Of callbacks, those that have ``state_dict`` and
        ``load_state_dict``.
    identity
        What must be equal of two fits if one is to go on as the other
        (:func:`~pyro_vae.svi.state.identity.identity_of`).
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
        self.device = next(iter(loop.parameters.values())).device
        self.settings = _settings(loop)
        self.generators = _generators(batches)

    def content(self) -> dict[str, Any]:
        """It all as plain values and tensors, as it is now."""
        return {
            "schema": SCHEMA,
            "torch": torch.__version__,
            "identity": self.identity,
            "engine": self.loop.engine_name,
            "seconds": time.perf_counter() - self.started,
            "loop": self.loop.state(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "settings": (self.settings, _settings(self.loop)),
            "generators": [generator.get_state() for generator in self.generators],
            "streams": _streams(self.device),
            "probe": self._probe(),
        }

    @property
    def can_go_on_from_here(self) -> bool:
        """A loader with a stream of its own cannot draw the order of a running epoch again."""
        return self.loop.position == 0 or not self.generators

    def restore(self, found: dict[str, Any], steps: int) -> None:
        """Go back to where a state was taken, in a fit that is to end after so many steps.

        Raises
        ------
        ValueError
            If it is another fit's, with the rest of a sentence about its checkpoint. What was restored by
            then stays so.
        """
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
        _set_settings(self.loop, {name: value for name, value in last.items() if name not in steady})

    def _probe(self) -> float:
        """The loss of a fixed batch and noise, by which a changed program shows itself."""
        if isinstance(self.batches, LoaderBatches):
            return math.nan
        before = _settings(self.loop)
        loss = self.loop.loss_on(self.batches.first())
        _set_settings(self.loop, before)
        return loss


def _owners(loop: Loop) -> dict[str, tuple[nn.Module, str]]:
    """The plain numbers, flags and words on the modules, by where they are: the module and the attribute."""
    roots = zip(("model", "guide"), modules_of(loop.model, loop.guide), strict=False)
    return {
        ".".join(filter(None, (tag, path, name))): (module, name)
        for tag, root in roots
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }


def _settings(loop: Loop) -> dict[str, Any]:
    return {where: vars(module)[name] for where, (module, name) in _owners(loop).items()}


def _set_settings(loop: Loop, settings: dict[str, Any]) -> None:
    for where, (module, name) in _owners(loop).items():
        if where in settings:
            vars(module)[name] = settings[where]


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
