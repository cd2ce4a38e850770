"""A data set from a user's file: checked, as rows of float32, with a likelihood that suits."""

__all__ = ["SUFFIXES", "load_file"]

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_vae.data.arrays import read_npy, read_npz
from pyro_vae.data.dataset import DataSet, FloatArray
from pyro_vae.data.tables import read_csv, read_parquet, table_of_numbers

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")
_VALUES_AT_ONCE = 4_194_304


def load_file(
    path: Path, *, label: str | None, likelihood: str | None, likelihood_args: Mapping[str, Any]
) -> DataSet:
    """The data set in a file; see `load`."""
    arguments = dict(likelihood_args)
    columns: tuple[str, ...] | None = None
    y: npt.NDArray[Any] | None = None
    suffix = path.suffix.lower()
    if suffix in {".csv", ".parquet"}:
        read = read_csv if suffix == ".csv" else read_parquet
        table = table_of_numbers(read(path), path, label)
        array, columns, y = table.x, table.columns, table.y
    else:
        if label is not None:
            raise ValueError(f"label={label!r} names a column of a table, and {path} holds arrays.")
        array, y = (read_npy(path), None) if suffix == ".npy" else read_npz(path)
    image_shape = _image_shape(array, path)
    x = _as_rows(array, path, columns)
    chosen = likelihood or _suggestion(x, array.dtype)
    if chosen == "binomial":
        arguments.setdefault("total_count", 255 if array.dtype == np.uint8 else max(1, int(x.max())))
    elif chosen == "categorical":
        arguments.setdefault("categories", max(2, int(x.max()) + 1))
    return DataSet(path.stem, x, y, chosen, arguments, image_shape, columns)


def _image_shape(array: npt.NDArray[Any], path: Path) -> tuple[int, ...] | None:
    """The shape of a row that is an image; refuses what is neither a table nor images."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} has dtype {array.dtype}: save it as floats or integers.")
    if array.ndim not in {2, 3, 4}:
        raise ValueError(
            f"{path} has shape {array.shape}; it takes (n, features), (n, height, width) or "
            "(n, channels, height, width)."
        )
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}.")
    if array.ndim == 4 and array.shape[3] in {1, 3, 4} and array.shape[1] > 4:
        raise ValueError(
            f"{path} has shape {array.shape}, which looks like channels last; "
            "save x.transpose(0, 3, 1, 2), (n, channels, height, width)."
        )
    return None if array.ndim == 2 else array.shape[1:]


def _as_rows(array: npt.NDArray[Any], path: Path, columns: Sequence[str] | None) -> FloatArray:
    """The array as float32 (n, features), not copied if it is that already.

    Refuses NaN, infinity, what overflows float32, and data that are constant.
    """
    with np.errstate(over="ignore"):  # refused below, with its place
        x = array if array.dtype == np.float32 else np.asarray(array, dtype=np.float32)
    x = x.reshape(len(array), -1)
    lowest = np.full(x.shape[1], np.inf)
    highest = -lowest
    for start, rows in _chunks(x):
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            value = array.reshape(len(array), -1)[start + row, column]
            name = repr(columns[column]) if columns else column
            remedy = "rescale the column" if np.isfinite(value) else "drop the row or impute the value"
            raise ValueError(f"{path} holds {value} in row {start + row}, column {name}: {remedy}.")
        lowest = np.minimum(lowest, rows.min(0))
        highest = np.maximum(highest, rows.max(0))
    if (lowest == highest).all():
        raise ValueError(
            f"{path} is constant: each of its columns has one value, so there is nothing to model."
        )
    return x


def _suggestion(x: FloatArray, dtype: np.dtype[Any]) -> str:
    """Name of the likelihood that suits values whose meaning is not known."""
    is_binary = is_count = True
    for _, rows in _chunks(x):
        is_binary = is_binary and bool(((rows == 0) | (rows == 1)).all())
        is_count = is_count and bool(((rows >= 0) & (rows == np.round(rows))).all())
    if is_binary:
        return "bernoulli"
    if is_count:
        return "binomial" if dtype == np.uint8 else "poisson"
    return "normal"


def _chunks(x: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Rows a few at a time, so that a memory-mapped file is never in memory as a whole."""
    size = max(1, _VALUES_AT_ONCE // x.shape[1])
    for start in range(0, len(x), size):
        yield start, x[start : start + size]
