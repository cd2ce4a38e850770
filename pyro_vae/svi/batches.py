"""Data as minibatches on the device: every source looks the same to the fit."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["ArrayBatches", "Batch", "Batches", "LoaderBatches", "as_batches", "as_tensors", "epoch_seed"]

Batch = tuple[Tensor, ...]


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


def as_tensors(data: Any, *, device: torch.device, dtype: torch.dtype, name: str = "data") -> Batch:
    """A tensor, an array, or a tuple of them, on the device; floating point becomes ``dtype``, integers stay
    what they are.

    Raises
    ------
    TypeError
        If an element is neither.
    ValueError
        If it is empty, has NaN or infinite values, or the lengths differ.
    """
    parts = data if isinstance(data, tuple) else (data,)
    tensors = []
    for i, part in enumerate(parts):
        label = f"{name}[{i}]" if isinstance(data, tuple) else name
        if isinstance(part, np.ndarray):
            if part.dtype.kind not in "fiub":
                raise TypeError(f"{label} is an array of dtype {part.dtype}; give numbers")
            part = torch.from_numpy(np.array(part) if not part.flags.writeable else part)
        if not torch.is_tensor(part):
            raise TypeError(
                f"{label} is a {type(part).__name__}; give a tensor, a numpy array, or a tuple of them"
            )
        if part.dim() == 0 or len(part) == 0:
            raise ValueError(f"{label} has shape {tuple(part.shape)}, so there is no observation in it")
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            where = tuple(int(i) for i in (~torch.isfinite(part)).nonzero()[0])
            raise ValueError(
                f"{label} is {float(part[where])} at index {where}; remove or impute what is not finite"
            )
        tensors.append(part.to(device=device, dtype=dtype if part.is_floating_point() else None))
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) > 1:
        raise ValueError(
            f"the parts of {name} have {sorted(lengths)} observations; they must have equally many"
        )
    return tuple(tensors)


class ArrayBatches:
    """Tensors that stay on the device; each batch is gathered there.

    The order is a permutation drawn from a generator of its own, so the noise of the fit does not depend on
    how data are shuffled.
    """

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, seed: int) -> None:
        self.tensors = tuple(tensors)
        self.observations = len(self.tensors[0])
        self.batch_size = min(batch_size, self.observations)
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(self.observations / self.batch_size)

    def first(self) -> Batch:
        return tuple(tensor[: self.batch_size] for tensor in self.tensors)

    def epoch(self, index: int) -> Iterator[Batch]:
        for rows in self.order(index).split(self.batch_size):
            yield tuple(tensor.index_select(0, rows) for tensor in self.tensors)

    def order(self, index: int) -> Tensor:
        """The rows of all observations, in the order of an epoch."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, index))
        return torch.randperm(self.observations, generator=generator).to(self.tensors[0].device)


class LoaderBatches:
    """Batches from a ``DataLoader``, moved to the device one by one."""

    def __init__(self, loader: DataLoader[Any], device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.loader, self.device, self.dtype, self.seed = loader, device, dtype, seed
        self.observations = len(loader.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.loader)

    def first(self) -> Batch:
        return next(self.epoch(0))

    def epoch(self, index: int) -> Iterator[Batch]:
        # A loader draws its order from torch's stream when it starts; give it a stream of its own, so that
        # the order follows from the seed and the noise of the fit does not depend on it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(epoch_seed(self.seed, index))
            batches = iter(self.loader)
            first = next(batches)
        for batch in itertools.chain([first], batches):
            parts = tuple(batch) if isinstance(batch, list | tuple) else batch
            yield as_tensors(parts, device=self.device, dtype=self.dtype, name="a batch of data")


def as_batches(data: Any, *, batch_size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Batches:
    """The batches of whatever ``fit`` takes as data."""
    if isinstance(data, DataLoader):
        return LoaderBatches(data, device, dtype, seed)
    if isinstance(data, Dataset):
        return LoaderBatches(DataLoader(data, batch_size, shuffle=True), device, dtype, seed)
    return ArrayBatches(as_tensors(data, device=device, dtype=dtype), batch_size, seed)


def epoch_seed(seed: int, epoch: int) -> int:
    """Distinct streams for distinct (seed, epoch) pairs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
