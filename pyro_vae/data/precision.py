"""Whether float32 can tell the values of a column apart."""

__all__ = ["lost_columns"]

from typing import Any

import numpy as np
import numpy.typing as npt

TOLERATED = 1e-3
"""Rounding, in standard deviations of the column, that no model would notice."""


def lost_columns(x: npt.NDArray[Any]) -> list[int]:
    """The columns of (n, features) whose values differ by less than float32 resolves: timestamps, say, or
    numbers of the order 10⁹ that count single units.

    Examples
    --------
    >>> lost_columns(np.array([[1.7e9, 0.1], [1.7e9 + 1, 0.2]]))
    [0]
    """
    if x.dtype.kind not in "fiu" or not x.size or (x.dtype.kind == "f" and x.dtype.itemsize <= 4):
        return []
    lowest, highest = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    size = np.maximum(np.abs(lowest), np.abs(highest))
    # the deviation is at most half of the range: a cheap look settles almost every column
    suspicious = (highest > lowest) & (size * np.finfo(np.float32).eps > TOLERATED * (highest - lowest) / 256)
    found = []
    for column in np.flatnonzero(suspicious):
        values = np.asarray(x[:, column], dtype=np.float64)
        rounded = values.astype(np.float32)
        if np.abs(values - rounded).max() <= TOLERATED * values.std():
            continue
        if not np.array_equal(
            rounded.astype(str).astype(np.float64), values
        ):  # else it was float32's own text
            found.append(int(column))
    return found
