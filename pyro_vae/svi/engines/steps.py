"""What takes the steps of a fit: one protocol for every engine."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.batches.batches import Batch, GatheredEpoch
from pyro_vae.pairs.isolation import Program
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.parallel.ranks import OneProcess


class CannotError(Exception):
    """Steps of this kind cannot be taken here, because of what the message says. Nothing has changed, and the
    next kind of steps may try."""


@dataclass
class Task:
    """What steps work on: a pair and its objective, and what moves its parameters."""

    model: Program
    guide: Program
    objective: Objective
    parameters: dict[str, Tensor]
    optimizer: Optimizer
    schedule: LRScheduler | None
    max_norm: float | None
    count: Callable[[Batch], int]
    """Observations that the totals of a batch are about: the batch's rows, or the full data where a plate
    rescales to it."""
    ranks: OneProcess = field(default_factory=OneProcess)
    called: Sequence[nn.Module] = ()
    """Modules that plain functions call: their buffers belong to the fit as well."""
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    """Holds back other threads while Pyro runs, where there are others."""
    kl_weight: Tensor = field(init=False)
    """Of the step that is being taken; captured graphs read it from this tensor."""
    _weight: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        leaf = self.leaves[0]
        self.kl_weight = torch.ones((), dtype=leaf.dtype, device=leaf.device)

    def weigh(self, step: int) -> None:
        """Set the weight of the KL to that of a step."""
        weight = self.objective.weight_at(step)
        if weight != self._weight:
            self._weight = weight
            self.kl_weight.fill_(weight)

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.parameters.values())

    @property
    def device(self) -> torch.device:
        return self.leaves[0].device


class Plan(NamedTuple):
    """Where a fit stands when it asks for steps."""

    step: int = 0
    """Steps taken before."""
    most: int = 1
    """Steps that may be taken now, at the most."""
    bad_in_a_row: int = 0
    """Of the last steps, how many were not finite."""


class Taken(NamedTuple):
    """The steps that were taken."""

    terms: list[list[float]]
    """Of each: loss, KL, reconstruction and the norm of the whole gradient before it is clipped. The first
    three are totals in nats, as Pyro reports them. Where loss or norm is not finite, nothing has moved."""
    observations: int
    """What the totals of a step are about."""


class Ahead:
    """The batches of an epoch on which no step has been taken yet.

    Examples
    --------
    >>> ahead = Ahead(iter([(torch.zeros(2),), (torch.ones(1),)]))
    >>> ahead.skip(1)
    >>> ahead.peek()
    (tensor([1.]),)
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._next: Batch | None = None

    @property
    def tensors(self) -> Batch | None:
        """What batches are gathered from, where they are: then the rows of many are known at once."""
        return self._batches.tensors if isinstance(self._batches, GatheredEpoch) else None

    def peek(self) -> Batch | None:
        """The next batch, which stays the next; None at the end."""
        if self._next is None:
            epoch = self._batches
            if not isinstance(epoch, GatheredEpoch):
                self._next = next(epoch, None)
            elif (rows := epoch.next_rows()).shape[0]:
                self._next = epoch.gather(rows)
        return self._next

    def rows(self, *, any_size: bool) -> Tensor:
        """The rows of batches of one size, (batches, batch size): those that are full, or, where none is
        ahead and ``any_size``, the last smaller one."""
        assert isinstance(self._batches, GatheredEpoch)
        full = self._batches.full_batches()
        return self._batches.next_rows()[None] if any_size and not len(full) else full

    def skip(self, batches: int) -> None:
        """Leave the next batches behind."""
        if isinstance(self._batches, GatheredEpoch):
            self._batches.skip(batches)
        else:
            unread = batches - (self._next is not None)
            next(itertools.islice(self._batches, unread, unread), None)
        if batches:
            self._next = None


class Steps(Protocol):
    """One way to take the steps of a :class:`Task`. A new engine is a class with these members and a place in
    :func:`~pyro_vae.svi.engines.choice.chain_of`."""

    name: str
    """Of the engine."""
    how: str
    """How it takes steps, in words, for the log: "runs plain Pyro at every step"."""

    def take(self, ahead: Ahead, plan: Plan) -> Taken:
        """Take one step or many on the batches ahead and leave these behind; none at the end of the epoch.
        Raises CannotError if it cannot; nothing has moved then."""

    def verify(self, batch: Batch, plan: Plan) -> None:
        """Compare with Pyro, where there is something to compare and it is due. Called at the start of every
        epoch, with its first batch. Raises CannotError if the two cannot be brought together."""
