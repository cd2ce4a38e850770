"""A data set from a user's file: checked, as rows of float32, with a likelihood that suits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief, cut
from pyro_vae.arrays import lost_columns
from pyro_vae.data.arrays import read_npy, read_npz
from pyro_vae.data.dataset import STANDARDIZED, DataSet, FloatArray
from pyro_vae.data.sentinels import sentinel_notes
from pyro_vae.data.tables import read_csv, read_parquet, table_of_numbers

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")
_VALUES_AT_ONCE = 4_194_304


@dataclass(frozen=True)
class TableOptions:
    """What a reader says of a table where it cannot be guessed; see `load`."""

    label: str | None = None
    columns: Sequence[str] | None = None
    header: bool | None = None
    separator: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not left open."""
        return {name: value for name, value in vars(self).items() if value is not None}


def load_file(
    path: Path, *, options: TableOptions, likelihood: str | None, likelihood_args: Mapping[str, Any]
) -> DataSet:
    """The data set in a file; see `load`."""
    arguments = dict(likelihood_args)
    columns: tuple[str, ...] | None = None
    y: npt.NDArray[Any] | None = None
    left_out: Mapping[str, str] = {}
    suffix = path.suffix.lower()
    _require_table(path, suffix, options)
    if suffix in {".csv", ".parquet"}:
        frame = (
            read_csv(path, separator=options.separator, header=options.header)
            if suffix == ".csv"
            else read_parquet(path)
        )
        table = table_of_numbers(frame, path, options.label, options.columns)
        array, columns, y, left_out = table.x, table.columns, table.y, table.left_out
    else:
        array, y = (read_npy(path), None) if suffix == ".npy" else read_npz(path)
    image_shape = _image_shape(array, path)
    x = _as_rows(array, path, columns)
    suggested, why = _suggestion(x, array.dtype)
    if likelihood is not None:
        suggested, why = likelihood, "it was asked for"
    if suggested == "binomial":
        arguments.setdefault("total_count", 255 if array.dtype == np.uint8 else max(1, int(x.max())))
    elif suggested == "categorical":
        arguments.setdefault("categories", max(2, int(x.max()) + 1))
    if x.dtype != np.float32 and suggested not in STANDARDIZED:
        raise ValueError(
            f"{path} holds values whose differences float32 loses ({_lost_column(x, columns)}), and a "
            f"{suggested} likelihood takes them as they are; subtract a constant, leave the column out by "
            "columns=[...] (--columns), or give likelihood='normal' (--likelihood normal)"
        )
    notes = sentinel_notes(x, (rows for _, rows in _chunks(x)), columns)
    return DataSet(path.stem, x, y, suggested, arguments, image_shape, columns, why, left_out, notes)


def _require_table(path: Path, suffix: str, options: TableOptions) -> None:
    """Refuse what is said of a table where the file holds none."""
    for name, value in options.given.items():
        if name in ("header", "separator") and suffix != ".csv":
            raise ValueError(f"{name} is {brief(value)}, for .csv files, and {path} is none; leave it out")
        if suffix not in {".csv", ".parquet"}:
            named = "a column" if name == "label" else "columns"
            raise ValueError(
                f"{name} is {brief(value)}, {named} of a table, and {path} holds arrays; leave it out"
            )


def _image_shape(array: npt.NDArray[Any], path: Path) -> tuple[int, ...] | None:
    """The shape of a row that is an image; refuses what is neither a table nor images."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} has dtype {cut(str(array.dtype))}; save it as floats or integers")
    if array.ndim not in {2, 3, 4}:
        raise ValueError(
            f"{path} has shape {array.shape}; it takes (n, features), (n, height, width) or "
            "(n, channels, height, width)"
        )
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}; give one with rows")
    if array.ndim == 4 and array.shape[3] in {1, 3, 4} and array.shape[1] > 4:
        raise ValueError(
            f"{path} has shape {array.shape}, which looks like channels last; "
            "save x.transpose(0, 3, 1, 2), (n, channels, height, width)"
        )
    return None if array.ndim == 2 else array.shape[1:]


def _as_rows(array: npt.NDArray[Any], path: Path, columns: Sequence[str] | None) -> FloatArray:
    """The array as float32 (n, features), not copied if it is that already; as float64 where float32 would
    lose the differences in a column.

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
            name = brief(columns[column]) if columns else column
            remedy = "rescale the column" if np.isfinite(value) else "drop the row or impute the value"
            if columns and not np.isfinite(x[:, column]).any():
                others = "name the columns to keep as columns=[...] (--columns)"
                raise ValueError(f"{path} holds no number at all in column {name}; drop it, or {others}")
            raise ValueError(f"{path} holds {value} in row {start + row}, column {name}; {remedy}")
        lowest = np.minimum(lowest, rows.min(0))
        highest = np.maximum(highest, rows.max(0))
    if array.dtype != np.float32 and lost_columns(array.reshape(len(array), -1)):
        return np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    if (lowest == highest).all():
        raise ValueError(
            f"{path} is constant: each of its columns has one value, so there is nothing to model"
        )
    return x


def _lost_column(x: npt.NDArray[Any], columns: Sequence[str] | None) -> str:
    column = lost_columns(x)[0]
    return f"column {brief(columns[column] if columns else column)}, near {float(x[0, column]):g}"


def _suggestion(x: FloatArray, dtype: np.dtype[Any]) -> tuple[str, str]:
    """Name of the likelihood that suits values whose meaning is not known, and why."""
    is_binary = is_count = True
    for _, rows in _chunks(x):
        is_binary = is_binary and bool(((rows == 0) | (rows == 1)).all())
        is_count = is_count and bool(((rows >= 0) & (rows == np.round(rows))).all())
    if is_binary:
        return "bernoulli", "all values are 0 or 1"
    if is_count:
        if dtype == np.uint8:
            return "binomial", "all values are bytes"
        return "poisson", "all values are non-negative integers"
    return "normal", "not all values are non-negative integers"


def _chunks(x: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Rows a few at a time, so that a memory-mapped file is never in memory as a whole."""
    size = max(1, _VALUES_AT_ONCE // x.shape[1])
    for start in range(0, len(x), size):
        yield start, x[start : start + size]
