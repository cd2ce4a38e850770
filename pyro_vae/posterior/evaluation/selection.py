"""Choose the observations of some data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.batches.files import read_rows
from pyro_vae.batches.rows import plain_parts


def as_parts(data: Any) -> tuple[Any, ...]:
    """The arguments of the programs as tensors and arrays; of a loader all that it has. Raises TypeError if
    one is no array; ValueError if there is no observation."""
    empty = isinstance(data, tuple) and not data
    parts = () if empty else plain_parts(data)[0]
    if not parts or any(part.ndim == 0 or part.shape[0] == 0 for part in parts):
        raise ValueError("data is empty; give at least one observation")
    return parts


def select(data: Any, observations: Sequence[int] | None) -> tuple[NDArray[np.int64], Any]:
    """The chosen observations, and their data."""
    parts = as_parts(data)
    total = int(parts[0].shape[0])
    several = len(parts) > 1 or isinstance(data, tuple)
    if observations is None:
        return np.arange(total), parts if several else parts[0]
    chosen_rows = np.asarray(observations).ravel()
    if chosen_rows.size == 0:
        raise ValueError("observations is empty; name at least one, or leave it out for all")
    if chosen_rows.dtype.kind not in "iu":
        raise TypeError(f"observations has dtype {chosen_rows.dtype}; give row numbers, such as [0, 5]")
    index = chosen_rows.astype(np.int64)
    if index.min() < -total or index.max() >= total:
        raise IndexError(
            f"observations reach from {index.min()} to {index.max()}, but the data have only {total}; "
            f"give row numbers in 0…{total - 1}"
        )
    index = index % total
    chosen = tuple(part[index] if isinstance(part, Tensor) else read_rows(part, index) for part in parts)
    return index, chosen if several else chosen[0]


def device_of(data: Any) -> torch.device:
    first = as_parts(data)[0]
    return first.device if isinstance(first, Tensor) else torch.device("cpu")
