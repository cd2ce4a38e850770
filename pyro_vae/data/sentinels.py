"""Numbers that are often written where a value is missing: they are told, and taken as they are."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief

SENTINELS = tuple(
    sign * size for size in (99.0, 999.0, 9999.0, 99999.0, 999999.0, 1e20, 1e30) for sign in (-1.0, 1.0)
)
FEWEST = 2
"""Rows that hold it: a single one may be an outlier."""
FAR = 10.0
"""Interquartile ranges of the other values that lie between them and it."""


def sentinel_notes(
    x: npt.NDArray[Any], chunks: Iterable[npt.NDArray[Any]], columns: Sequence[str] | None
) -> tuple[str, ...]:
    """A sentence for each column that seems to hold such numbers; ``chunks`` are the rows of ``x``.

    Examples
    --------
    >>> x = np.array([[1.0, 2.0], [2.0, -999.0], [3.0, 1.0], [2.0, -999.0], [1.0, 3.0]])
    >>> print(*sentinel_notes(x, [x], ["a", "b"]))
    column 'b' holds -999 in 2 rows, far from its other values (1 to 3), as missing values are often...
    """
    ends = [(rows.min(0), rows.max(0)) for rows in chunks]
    lowest, highest = np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)
    known = np.array(SENTINELS, dtype=x.dtype)
    suspect = np.isin(lowest, known) | np.isin(highest, known)
    leave_out = ", or leave the column out by columns=[...] (--columns)" if columns else ""
    notes = []
    for column in np.flatnonzero(suspect).tolist():
        values = np.asarray(x[:, column], dtype=np.float64)
        marked = np.isin(values.astype(x.dtype), known)
        others = values[~marked]
        if not len(others):
            continue
        low, high = np.quantile(others, [0.25, 0.75])
        name = brief(columns[column]) if columns else column
        for value in np.unique(values[marked]):
            rows = int((values == value).sum())
            gap = max(others.min() - value, value - others.max())
            if rows >= FEWEST and gap > FAR * (high - low):
                notes.append(
                    f"column {name} holds {value:g} in {rows} rows, far from its other values "
                    f"({others.min():g} to {others.max():g}), as missing values are often written; it was "
                    f"taken as a number: if it is none, drop these rows or impute the values{leave_out}"
                )
    return tuple(notes)
