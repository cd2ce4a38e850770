"""Data as minibatches on the device: every source looks the same to the fit."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vae.arrays import as_tensor, is_file_array, is_mapped, lost_columns, plain_array
from pyro_vae.batches.files import MappedRows, row_chunks
from pyro_vae.batches.streams import is_stream, whole_stream
from pyro_vae.devices import making_tensors_on

Batch = tuple[Tensor, ...]
Rows = Tensor | MappedRows
Check = Callable[[Tensor, str], None]
"""Raises if values cannot come from the model's likelihood; knows what a sentence calls them."""


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


def as_tensors(
    data: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "data",
    floats: Collection[int] = (),
) -> Batch:
    """Whatever :func:`~pyro_vae.arrays.plain_array` takes, a tuple of them, or the batches of a loader, on
    the device; floating point becomes ``dtype``, and so do the integers of the parts ``floats``.

    Raises
    ------
    TypeError
        If an element is no array.
    ValueError
        If it is empty, has NaN, infinite or masked values, its differences are lost in ``dtype``, or the
        lengths differ.
    """
    rows = as_rows(data, device=device, dtype=dtype, name=name, floats=floats)
    return tuple(part[:] if isinstance(part, MappedRows) else part for part in rows)


def as_rows(
    data: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "data",
    floats: Collection[int] = (),
) -> tuple[Rows, ...]:
    """As :func:`as_tensors`, but memory-mapped arrays stay in their files."""
    parts, labels = plain_parts(data, name)
    rows = tuple(
        _as_rows(part, label, device, dtype, i in floats)
        for i, (part, label) in enumerate(zip(parts, labels, strict=True))
    )
    lengths = {len(part) for part in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"the parts of {name} have {sorted(lengths)} observations; they must have equally many"
        )
    return rows


def plain_parts(data: Any, name: str = "data") -> tuple[tuple[Any, ...], list[str]]:
    """The arguments of the programs as tensors and arrays, and what a sentence calls each."""
    if is_stream(data):
        data = whole_stream(data)
    parts = data if isinstance(data, tuple) else (data,)
    if not parts:
        raise ValueError(f"{name} is an empty tuple; give a tensor, a numpy array, or a tuple of them")
    labels = [f"{name}[{i}]" if isinstance(data, tuple) else name for i in range(len(parts))]
    plain = [plain_array(part, label) for part, label in zip(parts, labels, strict=True)]
    # data are constants, whatever made them
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in plain), labels


def _as_rows(part: Any, label: str, device: torch.device, dtype: torch.dtype, as_floats: bool) -> Rows:
    if part.ndim == 0 or part.shape[0] == 0:
        raise ValueError(f"{label} has shape {tuple(part.shape)}, so there is no observation in it")
    if 0 in part.shape:
        raise ValueError(f"{label} has shape {tuple(part.shape)}, so there is no number in it")
    _require_differences(part, label, dtype)
    rows = _placed(part, label, device, dtype, as_floats)
    for chunk in row_chunks(rows):
        values = rows[chunk]
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            continue
        where = tuple(int(i) for i in (~torch.isfinite(values)).nonzero()[0])
        where = (chunk.start + where[0], *where[1:])
        value = float(part[where])
        remedy = (
            f"it overflows {dtype}: rescale the data"
            if math.isfinite(value)
            else "remove or impute what is not finite"
        )
        raise ValueError(f"{label} is {value} at index {where}; {remedy}")
    return rows


def _require_differences(part: Any, label: str, dtype: torch.dtype) -> None:
    """Refuse numbers whose differences are lost where they become float32."""
    if dtype != torch.float32 or part.dtype not in (torch.float64, np.dtype(np.float64)):
        return
    some = part[next(row_chunks(part))]  # of an array in a file the first few million values
    values = some.detach().cpu().numpy() if isinstance(some, Tensor) else np.asarray(some)
    lost = lost_columns(values.reshape(len(values), -1))
    if lost:
        raise ValueError(
            f"{label} holds values near {values.reshape(len(values), -1)[0, lost[0]]:g} in column {lost[0]}, "
            "whose differences float32 loses; standardize the column in float64 before, as "
            "pyro_vae.data.standardize does, or give model and guide float64 parameters by .double()"
        )


def _placed(part: Any, label: str, device: torch.device, dtype: torch.dtype, as_floats: bool) -> Rows:
    if is_mapped(part) or is_file_array(part):
        return MappedRows(part, device, dtype, as_floats=as_floats)
    tensor = as_tensor(part, label, device, dtype)
    return tensor.to(dtype) if as_floats else tensor


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
    """Tensors that stay on the device; each batch is gathered there.

    The order is a permutation drawn from a generator of its own, so the noise of the fit does not depend on
    how data are shuffled.
    """

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, seed: int) -> None:
        self.tensors = tuple(tensor.contiguous() for tensor in tensors)
        self.observations = len(self.tensors[0])
        self.batch_size = min(batch_size, self.observations)
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(self.observations / self.batch_size)

    def first(self) -> Batch:
        return tuple(tensor[: self.batch_size] for tensor in self.tensors)

    def epoch(self, index: int) -> GatheredEpoch:
        order = epoch_order(self.observations, self.seed, index).to(self.tensors[0].device)
        return GatheredEpoch(self.tensors, order, self.batch_size)


class MappedBatches:
    """Batches that are read from memory-mapped arrays one by one, in the order of :class:`ArrayBatches`."""

    def __init__(self, rows: Sequence[Rows], batch_size: int, seed: int) -> None:
        self.rows = tuple(rows)
        self.observations = len(self.rows[0])
        self.batch_size = min(batch_size, self.observations)
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(self.observations / self.batch_size)

    def first(self) -> Batch:
        return tuple(part[: self.batch_size] for part in self.rows)

    def epoch(self, index: int) -> Iterator[Batch]:
        order = epoch_order(self.observations, self.seed, index)
        for chosen in order.split(self.batch_size):
            yield tuple(part.index_select(0, chosen.to(part.device)) for part in self.rows)


class LoaderBatches:
    """Batches from a ``DataLoader``, moved to the device one by one.

    Raises
    ------
    TypeError
        If its data set has no length.
    ValueError
        If that is empty.
    """

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
        _require_length(data)
        return LoaderBatches(DataLoader(data, batch_size, shuffle=True), device, dtype, seed, floats, check)
    rows = as_rows(data, device=device, dtype=dtype, floats=floats)
    if check is not None:
        check_rows(check, rows[0], "data")
    tensors = [part for part in rows if isinstance(part, Tensor)]
    if len(tensors) < len(rows):
        return MappedBatches(rows, batch_size, seed)
    return ArrayBatches(tensors, batch_size, seed)


def check_rows(check: Check, rows: Any, name: str) -> None:
    """Let ``check`` look at a tensor, or at an array piece by piece."""
    if isinstance(rows, Tensor):
        check(rows, name)
        return
    if not isinstance(rows, MappedRows):
        rows = MappedRows(rows, torch.device("cpu"), torch.get_default_dtype())
    for chunk in row_chunks(rows):
        check(rows[chunk], name if chunk.start == 0 else f"{name}[{chunk.start}:]")


def _require_length(dataset: Any) -> None:
    try:
        length = len(dataset)
    except TypeError:
        raise TypeError(f"data is a {type(dataset).__name__} without a length; define __len__") from None
    if length == 0:
        raise ValueError(f"data is a {type(dataset).__name__} of length 0, so there is no observation in it")


def epoch_order(observations: int, seed: int, epoch: int) -> Tensor:
    """The rows of all observations in the order of an epoch."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.randperm(observations, generator=generator, device="cpu")


def epoch_seed(seed: int, epoch: int) -> int:
    """Distinct streams for distinct (seed, epoch) pairs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
