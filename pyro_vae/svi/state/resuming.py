"""Write the state of a fit to a file while it runs, and go on from there."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vae.arguments import kind
from pyro_vae.batches.batches import Batches
from pyro_vae.pairs.parameters import copy_tensors, restore_tensors
from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.lock import locked
from pyro_vae.storage.plain import pack, unpack
from pyro_vae.storage.records import check_schema, read_bytes
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loop import Loop
from pyro_vae.svi.parallel.ranks import OneProcess
from pyro_vae.svi.state.fit_state import SCHEMA, FitState

logger = logging.getLogger(__name__)


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
    """The checkpoint that ``fit`` was given. Raises TypeError if it is neither a path nor a Checkpoint."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if not isinstance(checkpoint, str | Path):
        raise TypeError(f"checkpoint is {kind(checkpoint)}; give the path of a file, or a Checkpoint")
    return Checkpoint(checkpoint)


class NoSaver:
    """For a fit without a checkpoint: nothing is found, and nothing written."""

    seconds_before = 0.0
    """How long the fit had run when it was interrupted."""

    def engine(self, asked: str) -> str:
        """The engine that the interrupted fit had come to: another's numbers differ in their last bits."""
        return asked

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

    def write_if_due(self) -> None:
        """Write if the interval has passed. Called where the state is whole."""

    def try_to_write(self) -> None:
        """Write, or say in the log that it cannot be: a disk that is full now may have room at the next
        interval, and the fit is worth more than the file."""


@dataclass
class Saver(NoSaver):
    """Writes the state of one fit to one file."""

    path: Path
    seconds: float
    found: dict[str, Any] | None
    """What an earlier process wrote; None if this fit begins."""
    writes: bool = True
    """Of a fit on many devices the first process writes, and the others only go on from what was found."""
    _state: FitState = field(init=False, repr=False)
    _written_at: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.seconds_before = 0.0 if self.found is None else float(self.found["seconds"])

    def engine(self, asked: str) -> str:
        if self.found is None or self.found["loop"]["step"] == 0:
            return asked
        return str(self.found["engine"])

    def begin(
        self,
        loop: Loop,
        batches: Batches,
        steps: int,
        callbacks: Sequence[Callable[[EpochRecord], None]],
        identity: dict[str, Any],
    ) -> None:
        state = FitState(loop, batches, callbacks, identity, self.seconds_before)
        if self.found is not None:
            tensors = loop.tensors()
            before = copy_tensors(tensors)
            try:
                state.restore(self.found, steps)
            except ValueError as error:
                restore_tensors(tensors, before)  # who is refused keeps the weights that he came with
                raise ValueError(f"the checkpoint {self.path} {error}") from None
            except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(
                    f"the checkpoint {self.path} cannot be used ({error}); it is damaged or foreign"
                ) from error
        self._state = state
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    def write_if_due(self) -> None:
        due = time.monotonic() - self._written_at >= self.seconds
        if self.writes and due and self._state.can_go_on_from_here:
            self.try_to_write()

    def try_to_write(self) -> None:
        try:
            if self.writes:
                self.write()
        except OSError as error:
            self._written_at = time.monotonic()
            logger.warning("the state of the fit could not be written, and it goes on: %s", error)

    def write(self) -> None:
        """Write now. Raises OSError if it cannot be written; the file is as it was; TypeError if the
        optimizer, the schedule or a callback keeps something that is no data."""
        write_whole(self.path, pack(self._state.content(), "the state"))
        self._written_at = time.monotonic()


@contextmanager
def open_checkpoint(given: str | Path | Checkpoint | None, ranks: OneProcess) -> Iterator[NoSaver]:
    """Hold a checkpoint's file for one fit, and read it if it exists. Of several processes the first does so,
    and tells the others what it has read. Raises ValueError if it is damaged, foreign or of a newer schema;
    BlockingIOError if another fit is writing it; OSError if its folder cannot be written."""
    if given is None:
        yield NoSaver()
        return
    checkpoint = as_checkpoint(given)
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
