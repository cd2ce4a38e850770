"""Data as minibatches on the device: every source looks the same to the fit."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vae.arguments import kind
from pyro_vae.batches.rows import Check, Rows, as_rows, as_tensors, check_rows
from pyro_vae.devices import making_tensors_on

Batch = tuple[Tensor, ...]


class ObservedPart(Protocol):
    """A part of the data that a model observes; knows which values it can have."""

    @property
    def part(self) -> int:
        """Which."""

    def refuse_impossible(self, part: Tensor, name: str) -> None:
        """Raise a ValueError if the model cannot have made a row of it."""


class Batches(Protocol):
    """What a fit asks of its data."""

    observations: int

    def __len__(self) -> int:
        """Batches in an epoch."""

    def first(self) -> Batch:
        """A batch to set up with; the same as the first of ``epoch`` in shapes and types."""

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of one pass; the order depends on the seed and the index alone, so a fit can be
        resumed."""


@runtime_checkable
class DrawnAnew(Protocol):
    """Data of which every batch is drawn anew from fixed tensors, by operations on tensors alone."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What batches are gathered from."""

    def draw(self, *batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One draw of a batch that was gathered."""


class GatheredEpoch(Iterator[Batch]):
    """One pass over tensors in some order: the batches one by one, or the rows of many for whoever gathers
    them himself."""

    def __init__(self, tensors: Batch, order: Tensor, batch_size: int) -> None:
        self.tensors, self.batch_size = tensors, batch_size
        self._ahead = order

    def __next__(self) -> Batch:
        rows = self.next_rows()
        if not len(rows):
            raise StopIteration
        self.skip(1)
        return self.gather(rows)

    def gather(self, rows: Tensor) -> Batch:
        """The observations of these rows."""
        return tuple(tensor.index_select(0, rows) for tensor in self.tensors)

    def full_batches(self) -> Tensor:
        """The rows of the batches ahead that are not smaller than the others: (batches, batch size)."""
        count = len(self._ahead) // self.batch_size
        return self._ahead[: count * self.batch_size].view(count, self.batch_size)

    def next_rows(self) -> Tensor:
        """The rows of the next batch, full or not; none at the end."""
        return self._ahead[: self.batch_size]

    def skip(self, batches: int) -> None:
        """Leave the next batches behind."""
        self._ahead = self._ahead[batches * self.batch_size :]


class ArrayBatches:
    """Batches of tensors, gathered on their device, and of arrays in files, read one batch after the other.

    The order is a permutation drawn from a generator of its own, so the noise of the fit does not depend on
    how data are shuffled. A batch of all the data is in their own order: a guide may have a parameter for
    each row, and rows may be a series.

    Parameters
    ----------
    rows
        The parts of the data.
    batch_size, seed
        Of the whole batches, and of their order.
    rank, ranks
        Of each batch every ``ranks``-th observation is taken, from ``rank`` on.
    """

    def __init__(
        self, rows: Sequence[Rows], batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.rows = tuple(part.contiguous() if isinstance(part, Tensor) else part for part in rows)
        self.observations = len(self.rows[0])
        self.batch_size = min(batch_size, self.observations)
        self.seed, self.rank, self.ranks = seed, rank, ranks

    @property
    def tensors(self) -> Batch:
        """The parts, if all are tensors; nothing, if one lies in a file."""
        tensors = tuple(part for part in self.rows if isinstance(part, Tensor))
        return tensors if len(tensors) == len(self.rows) else ()

    def __len__(self) -> int:
        return math.ceil(self.observations / self.batch_size)

    def first(self) -> Batch:
        return tuple(part[: self.batch_size : self.ranks] for part in self.rows)

    def epoch(self, index: int) -> Iterator[Batch]:
        if self.batch_size == self.observations:
            order = torch.arange(self.observations)
        else:
            order = epoch_order(self.observations, self.seed, index)
        tensors = self.tensors
        if tensors and self.ranks == 1:
            return GatheredEpoch(tensors, order.to(tensors[0].device), self.batch_size)
        return self._read(order)

    def _read(self, order: Tensor) -> Iterator[Batch]:
        for chosen in order.split(self.batch_size):
            mine = chosen[self.rank :: self.ranks]
            yield tuple(part.index_select(0, mine.to(part.device)) for part in self.rows)


class LoaderBatches:
    """Batches from a ``DataLoader``, moved to the device one by one. Raises TypeError if its data set has no
    length; ValueError if that is empty."""

    def __init__(
        self,
        loader: DataLoader[Any],
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        floats: Collection[int] = (),
        check: Check | None = None,
    ) -> None:
        _require_length(loader.dataset)
        self.loader, self.device, self.dtype, self.seed = loader, device, dtype, seed
        self.floats, self.check = floats, check
        self.observed: Sequence[ObservedPart] = ()
        self.observations = len(loader.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.loader)

    def first(self) -> Batch:
        batch = next(self.epoch(0), None)
        if batch is None:
            raise ValueError(
                f"data is a DataLoader that yields no batch of its {self.observations} observations; give a "
                "batch_size that is not larger, or drop_last=False"
            )
        return batch

    def epoch(self, index: int) -> Iterator[Batch]:
        # A loader draws its order from torch's stream when it starts; give it a stream of its own, so that
        # the order follows from the seed and the noise of the fit does not depend on it.
        # torch's samplers draw on the CPU only, and fail where another device is the default.
        on_cpu = torch.device("cpu")
        with torch.random.fork_rng(devices=[]), making_tensors_on(on_cpu):
            torch.default_generator.manual_seed(epoch_seed(self.seed, index))
            batches = iter(self.loader)
            batch = next(batches, None)
        while batch is not None:
            parts = tuple(batch) if isinstance(batch, list | tuple) else batch
            tensors = as_tensors(
                parts, device=self.device, dtype=self.dtype, name="a batch of data", floats=self.floats
            )
            if self.check is not None:
                self.check(tensors[0], "a batch of data")
            for site in self.observed:
                site.refuse_impossible(tensors[site.part], "a batch of data")
            yield tensors
            with making_tensors_on(on_cpu):
                batch = next(batches, None)


def as_batches(
    data: Any,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    floats: Collection[int] = (),
    check: Check | None = None,
) -> Batches:
    """The batches of whatever ``fit`` takes as data; the integers of the parts ``floats`` become ``dtype``.

    ``check`` looks at the first part: at arrays now, at a loader's batches as they come.
    """
    if isinstance(data, DataLoader):
        return LoaderBatches(data, device, dtype, seed, floats, check)
    if isinstance(data, DrawnAnew):
        data, check = data.tensors, None  # what is drawn is looked at by nobody, and it is not these
    elif isinstance(data, Dataset):
        loader = DataLoader(data, batch_size, shuffle=batch_size < _require_length(data))
        return LoaderBatches(loader, device, dtype, seed, floats, check)
    rows = as_rows(data, device=device, dtype=dtype, floats=floats)
    if check is not None:
        check_rows(check, rows[0], "data")
    return ArrayBatches(rows, batch_size, seed)


def _require_length(dataset: Any) -> int:
    try:
        length: int = len(dataset)
    except TypeError:
        raise TypeError(f"data is {kind(dataset)} without a length; define __len__") from None
    if length == 0:
        raise ValueError(f"data is {kind(dataset)} of length 0, so there is no observation in it")
    return length


def epoch_order(observations: int, seed: int, epoch: int) -> Tensor:
    """The rows of all observations in the order of an epoch."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.randperm(observations, generator=generator, device="cpu")


def epoch_seed(seed: int, epoch: int) -> int:
    """Distinct streams for distinct (seed, epoch) pairs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
