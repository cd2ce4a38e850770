"""Tables of numbers from .csv and .parquet files."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief, cut
from pyro_vae.data.arrays import require_unpackable
from pyro_vae.data.layout import SPACES, is_number, layout_of

if TYPE_CHECKING:
    import pandas as pd

ROW_NUMBERS = ("", "index", "id", "row", "row_id", "rownames", "unnamed: 0", "level_0")
"""Names, in lower case, under which programs write the rows' numbers."""


@dataclass(frozen=True)
class Table:
    """Numbers with the names of their columns, and labels if a column holds them."""

    x: npt.NDArray[Any]
    columns: tuple[str, ...]
    y: npt.NDArray[Any] | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Columns that are not in x, and why."""


def read_csv(path: Path, *, separator: str | None = None, header: bool | None = None) -> "pd.DataFrame":
    """The rows of a .csv file; separator, decimal sign and header are found out where they are not given.
    Raises ValueError if the file is empty, is not text, can be read in two ways, or its rows have different
    lengths."""
    import pandas as pd

    layout = layout_of(path, separator, header)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                sep=layout.separator,
                decimal=layout.decimal,
                header=None,
                skiprows=layout.first_line,
                skipinitialspace=layout.separator != SPACES,
                encoding="utf-8-sig",
                low_memory=False,
            )
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=list(layout.names or ()))
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        reason = brief(str(error).strip(". \n"))
        raise ValueError(
            f"{path} cannot be read as a table: {reason}; give every line as many fields as the first has"
        ) from error
    names = layout.names or tuple(str(i) for i in range(len(frame.columns)))
    if len(names) != len(frame.columns):
        raise ValueError(
            f"{path} has {len(names)} names in its header and {len(frame.columns)} fields in a row; name "
            "every column, and leave no separator at the ends of lines"
        )
    return frame.set_axis(list(names), axis=1)


def read_parquet(path: Path) -> "pd.DataFrame":
    """The rows of a .parquet file. Raises ImportError if pyarrow is not installed; ValueError if the file is
    truncated or corrupt."""
    import pandas as pd

    try:
        from pyarrow import parquet

        with path.open("rb") as file:
            about = parquet.read_metadata(file)
            require_unpackable(8 * about.num_rows * about.num_columns, path.stat().st_size)
            return pd.read_parquet(file, engine="pyarrow")
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow: pip install 'pyro-vae[parquet]'") from error
    except Exception as error:  # pandas lets through what it meets in a file's description of its index
        reason = str(error).strip(". ") if str(error).startswith("it unpacks") else brief(str(error))
        raise ValueError(f"{path} cannot be read as a parquet file: {reason}") from error


def table_of_numbers(
    frame: "pd.DataFrame", path: Path, label: str | None, columns: Sequence[str] | None = None
) -> Table:
    """The chosen columns of a frame as one array, by default all but the label and the rows' own numbers.
    Raises ValueError if the label or a chosen name is no column, or a column holds something that is not a
    number."""
    frame = frame.rename(columns=str)
    y = None
    left_out: dict[str, str] = {}
    if label is not None:
        if label not in frame.columns:
            raise ValueError(
                f"label is {brief(label)}, which is no column of {path}; "
                f"give one of {brief(list(frame.columns))}"
            )
        y = frame.pop(label).to_numpy()
        left_out[label] = "the label"
    if columns is not None:
        chosen = _chosen(columns, list(frame.columns), path)
        left_out |= {name: "not among columns" for name in frame.columns if name not in chosen}
        frame = frame[chosen]
    elif len(frame.columns) > 1 and _numbers_rows(frame.iloc[:, 0], str(frame.columns[0]), path):
        name = str(frame.columns[0])
        left_out[name] = "it numbers the rows"
        frame = frame.iloc[:, 1:]
    _require_numbers(frame, path)
    whole = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    _require_exact(frame, whole, path)
    return Table(whole, tuple(frame.columns), y, left_out)


def _require_numbers(frame: "pd.DataFrame", path: Path) -> None:
    import pandas as pd

    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            continue
        for row, value in enumerate(column):
            if not _is_number(value):
                raise ValueError(
                    f"{path} holds {brief(value)} in row {row}, column {brief(name)}, and that is not a "
                    "number; encode the column as numbers, drop it, or name it as "
                    f"label={brief(name)} (--label {cut(str(name))}), or name the columns to keep as "
                    "columns=[...] (--columns)"
                )


def _require_exact(frame: "pd.DataFrame", whole: npt.NDArray[Any], path: Path) -> None:
    """Refuse integers so large that float64 cannot tell them apart."""
    for name, exact, rounded in zip(frame.columns, frame.items(), whole.T, strict=True):
        values = exact[1].to_numpy()
        if values.dtype.kind in "iu" and len(values) and float(np.abs(rounded).max()) > 2.0**53:
            spread = float(np.ptp(values.astype(np.int64)))
            if spread < 1e6 * np.spacing(np.abs(rounded).max()):
                raise ValueError(
                    f"{path} holds {values[0]} in row 0, column {brief(name)}, and its values are so close "
                    "to each other that float64 loses their differences; subtract a constant from the "
                    "column, or leave it out by columns=[...] (--columns) or "
                    f"label={brief(name)} (--label {cut(name)})"
                )


def _chosen(asked: Sequence[str], known: list[str], path: Path) -> list[str]:
    """The columns that are named, one by one or several between commas."""
    names: list[str] = []
    for name in asked:
        names += [name] if name in known else [part.strip() for part in name.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(
                f"columns names {brief(name)}, and {path} has none of that name; give some of {brief(known)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"columns names {brief(name)} twice; name each column of {path} once")
    return names


def _numbers_rows(column: "pd.Series[Any]", name: str, path: Path) -> bool:
    """Whether the first column is the rows' own numbers or names, as ``to_csv`` writes them."""
    values = column.to_numpy()
    counted = values.dtype.kind in "iu" and (
        np.array_equal(values, np.arange(len(values))) or np.array_equal(values, np.arange(len(values)) + 1)
    )
    if name not in ("", "Unnamed: 0"):
        return bool(counted) and len(values) > 2 and name.lower() in ROW_NUMBERS
    distinct = values.dtype.kind in "iuO" and len(set(values.tolist())) == len(values)
    if not distinct:
        raise ValueError(
            f"the first column of {path} has no name, and its values do not number the rows; name it, or "
            "name the columns to keep as columns=[...] (--columns)"
        )
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return is_number(value)
    try:
        float(value)
    except (TypeError, ValueError):
        return value is None
    return True
