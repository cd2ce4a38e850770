"""Give each rank its share of every batch: all ranks see the same order, and each takes its part of it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from pyro_vae.batches.batches import ArrayBatches, Batches, LoaderBatches, epoch_seed


def share_of(batches: Batches, rank: int, size: int) -> Batches:
    """The batches of one of ``size`` ranks: of each batch every ``size``-th observation, from ``rank`` on.

    They are as many as the batches. One that has fewer observations than there are ranks leaves some ranks an
    empty share. Raises ValueError if a full batch has fewer observations than there are ranks, or a loader
    cannot be shared out.

    Examples
    --------
    >>> whole = ArrayBatches([torch.arange(8)], batch_size=5, seed=0)
    >>> [[len(x) for (x,) in share_of(whole, rank, 2).epoch(0)] for rank in range(2)]
    [[3, 2], [2, 1]]
    """
    if size == 1:
        return batches
    if isinstance(batches, LoaderBatches):
        return _LoaderShare(batches, rank, size)
    assert isinstance(batches, ArrayBatches)
    if batches.batch_size < size:
        raise ValueError(
            f"a batch has {batches.batch_size} observations and there are {size} ranks, each of which needs "
            "one; give a larger batch_size or fewer processes"
        )
    return ArrayBatches(batches.rows, batches.batch_size, batches.seed, rank, size)


class _LoaderShare(LoaderBatches):
    """A loader that reads this rank's rows only, by the whole loader's own order."""

    def __init__(self, whole: LoaderBatches, rank: int, size: int) -> None:
        loader = whole.loader
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            raise ValueError(
                "data is a DataLoader of an IterableDataset, or one without batches; ranks cannot share it "
                "out; give one of a Dataset with __getitem__, and batch_size"
            )
        shared = DataLoader(
            loader.dataset,
            batch_sampler=_SamplerShare(loader.batch_sampler, rank, size),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=_WorkerStart(rank, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        super().__init__(shared, whole.device, whole.dtype, whole.seed, whole.floats, whole.check)


@dataclass(frozen=True)
class _WorkerStart:
    """What a loader's workers draw (augmentation) is not the same on every rank, though the order is."""

    rank: int
    then: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        seed = epoch_seed(torch.initial_seed(), self.rank)
        torch.manual_seed(seed)
        random.seed(seed)
        if self.then is not None:
            self.then(worker)


class _SamplerShare(BatchSampler):
    """Every ``size``-th index of each batch of another sampler."""

    def __init__(self, whole: Any, rank: int, size: int) -> None:
        self.whole, self.rank, self.size = whole, rank, size

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.whole:
            yield list(indices)[self.rank :: self.size]
