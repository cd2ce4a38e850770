"""A fit that can be interrupted: its whole state in one file, written while it runs, and read to go on."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.lock import locked
from pyro_vae.storage.plain import pack, unpack
from pyro_vae.storage.records import check_schema, read_bytes
from pyro_vae.svi.batches import Batches, LoaderBatches
from pyro_vae.svi.distributed import OneProcess
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.identity import difference
from pyro_vae.svi.isolation import modules_of
from pyro_vae.svi.loop import Loop
from pyro_vae.svi.parameters import copy_tensors, restore_tensors

__all__ = ["Checkpoint", "Saver", "as_checkpoint", "open_checkpoint"]

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Version of what the file holds; a reader refuses a newer one."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit writes its state while it runs, and how often.

    Parameters
    ----------
    path
        A file. If it exists, the fit goes on from there.
    seconds
        Between two writes; 0 writes after every step.

    Raises
    ------
    ValueError
        If ``seconds`` is not a number of at least 0.

    Examples
    --------
    >>> Checkpoint("digits.state", seconds=60).path
    'digits.state'
    """

    path: str | Path
    seconds: float = 30.0

    def __post_init__(self) -> None:
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if not number or not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds!r}; give a number of at least 0")


def as_checkpoint(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    """The checkpoint that ``fit`` was given.

    Raises
    ------
    TypeError
        If it is neither a path nor a Checkpoint.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if not isinstance(checkpoint, str | Path):
        raise TypeError(
            f"checkpoint is a {type(checkpoint).__name__}; give the path of a file, or a Checkpoint"
        )
    return Checkpoint(checkpoint)


@dataclass
class Saver:
    """Writes the state of one fit to one file."""

    path: Path
    seconds: float
    found: dict[str, Any] | None
    """What an earlier process wrote; None if this fit begins."""
    writes: bool = True
    """Of a fit on many devices the first process writes, and the others only go on from what was found."""
    _context: "_Context" = field(init=False, repr=False)
    _written_at: float = field(init=False, default=-math.inf)

    def engine(self, asked: str) -> str:
        """The engine that the interrupted fit had come to: another's numbers differ in their last bits."""
        return asked if self.found is None else str(self.found["engine"])

    @property
    def seconds_before(self) -> float:
        """How long the fit had run when it was interrupted."""
        return 0.0 if self.found is None else float(self.found["seconds"])

    def begin(
        self,
        loop: Loop,
        batches: Batches,
        steps: int,
        callbacks: Sequence[Callable[[EpochRecord], None]],
        identity: dict[str, Any],
    ) -> None:
        """Restore what was found, if it is of this fit, and write the first state: a file that cannot be
        written is refused now and not after hours."""
        context = _Context(loop, batches, callbacks, identity, self.seconds_before)
        if self.found is not None:
            tensors = loop.tensors()
            before = copy_tensors(tensors)
            try:
                context.restore(self.found, steps)
            except ValueError as error:
                restore_tensors(tensors, before)  # who is refused keeps the weights that he came with
                raise ValueError(f"the checkpoint {self.path} {error}") from None
            except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(
                    f"the checkpoint {self.path} cannot be used ({error}); it is damaged or foreign"
                ) from error
        self._context = context
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    def write_if_due(self) -> None:
        """Write if the interval has passed. Called where the state is whole."""
        due = time.monotonic() - self._written_at >= self.seconds
        if self.writes and due and self._context.can_go_on_from_here:
            self.try_to_write()

    def try_to_write(self) -> None:
        """Write, or say in the log that it cannot be: a disk that is full now may have room at the next
        interval, and the fit is worth more than the file."""
        try:
            if self.writes:
                self.write()
        except OSError as error:
            self._written_at = time.monotonic()
            logger.warning("the state of the fit could not be written, and it goes on: %s", error)

    def write(self) -> None:
        """Write now.

        Raises
        ------
        OSError
            If it cannot be written; the file is as it was.
        TypeError
            If the optimizer, the schedule or a callback keeps something that is no data.
        """
        write_whole(self.path, pack(self._context.state(), "the state"))
        self._written_at = time.monotonic()


@contextmanager
def open_checkpoint(checkpoint: Checkpoint | None, ranks: OneProcess) -> Iterator[Saver | None]:
    """Hold a checkpoint's file for one fit, and read it if it exists. Of several processes the first does so,
    and tells the others what it has read.

    Raises
    ------
    ValueError
        If it is damaged, foreign or of a newer schema.
    BlockingIOError
        If another fit is writing it.
    OSError
        If its folder cannot be written.
    """
    if checkpoint is None:
        yield None
        return
    path = Path(checkpoint.path)
    if not ranks.leads:
        yield Saver(path, checkpoint.seconds, ranks.same_state(None), writes=False)
        return
    if path.is_dir():
        raise ValueError(f"the checkpoint {path} is a folder; give the name of a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        found = _read(path) if path.exists() else None
        yield Saver(path, checkpoint.seconds, ranks.same_state(found))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = unpack(read_bytes(path))
    except ValueError as error:
        raise ValueError(
            f"the checkpoint {path} cannot be read ({error}); it is damaged or foreign: remove it to begin "
            "anew"
        ) from error
    check_schema(content, SCHEMA, path)
    return dict(content)


class _Context:
    """Everything that belongs to the state of a fit, in the loop and around it."""

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

    def state(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "torch": torch.__version__,
            "identity": self.identity,
            "engine": self.loop.engine.name,
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
        """Raises ValueError with the rest of a sentence about the checkpoint if it is another fit's."""
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
