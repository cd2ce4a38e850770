"""Take a ``Dataset`` or ``DataLoader`` where the diagnostics take arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROWS_AT_ONCE = 1024
"""Of a ``Dataset``; a loader says it by its ``batch_size``."""


def is_stream(data: Any) -> bool:
    """Whether data come in batches."""
    return isinstance(data, DataLoader | Dataset)


def stream(data: Any) -> Iterator[tuple[Tensor, ...]]:
    """The batches in the order of the data, read once and by as many workers as the loader has.

    A loader that shuffles is read in order, so that results can be told by observation.

    Examples
    --------
    >>> data = torch.utils.data.TensorDataset(torch.arange(5))
    >>> [x.tolist() for (x,) in stream(DataLoader(data, batch_size=2, shuffle=True))]
    [[0, 1], [2, 3], [4]]
    """
    if isinstance(data, DataLoader):
        in_order: DataLoader[Any] = DataLoader(
            data.dataset,
            batch_size=data.batch_size or ROWS_AT_ONCE,
            num_workers=data.num_workers,
            collate_fn=data.collate_fn if data.batch_size else None,
            timeout=data.timeout,
            worker_init_fn=data.worker_init_fn,
            multiprocessing_context=data.multiprocessing_context,
            prefetch_factor=data.prefetch_factor,
        )
    else:
        in_order = DataLoader(data, ROWS_AT_ONCE)
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
        batches = iter(in_order)
    for batch in batches:
        yield tuple(batch) if isinstance(batch, list | tuple) else (batch,)


def first_rows(data: Any, count: int) -> tuple[Tensor, ...]:
    """The first observations, or all if there are fewer.

    Examples
    --------
    >>> first_rows(torch.utils.data.TensorDataset(torch.arange(5000)), 2000)[0].shape
    torch.Size([2000])
    """
    batches, rows = [], 0
    for batch in stream(data):
        batches.append(batch)
        rows += len(batch[0])
        if rows >= count:
            break
    if not batches:
        raise ValueError("data has no batch; give at least one observation")
    return tuple(torch.cat(parts)[:count] for parts in zip(*batches, strict=True))


def whole_stream(data: Any) -> Any:
    """All observations in memory: a tuple where a batch has several parts.

    Examples
    --------
    >>> whole_stream(DataLoader(torch.utils.data.TensorDataset(torch.arange(5)), batch_size=2))
    tensor([0, 1, 2, 3, 4])
    """
    parts = first_rows(data, sys.maxsize)
    return parts if len(parts) > 1 else parts[0]
