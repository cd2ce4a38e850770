"""Tables of numbers from .csv and .parquet files."""

__all__ = ["Table", "read_csv", "read_parquet", "table_of_numbers"]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """Numbers with the names of their columns, and labels if a column holds them."""

    x: npt.NDArray[Any]
    columns: tuple[str, ...]
    y: npt.NDArray[Any] | None


def read_csv(path: Path) -> "pd.DataFrame":
    """The rows of a .csv file, with or without a header.

    Raises
    ------
    ValueError
        If the file is empty, is not text, or its rows have different lengths.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path)
        # a first row of numbers is data, unless it counts the columns, as pandas names what has no names
        counted = [str(i) for i in range(len(frame.columns))]
        if list(frame.columns) != counted and all(_is_number(name) for name in frame.columns):
            frame = pd.read_csv(path, header=None)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip('. ')}.") from error
    return frame


def read_parquet(path: Path) -> "pd.DataFrame":
    """The rows of a .parquet file.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    ValueError
        If the file is truncated or corrupt.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow: pip install 'pyro-vae[parquet]'.") from error
    except (ValueError, OSError) as error:
        reason = str(error).strip(". ")
        raise ValueError(f"{path} cannot be read as a parquet file: {reason}.") from error


def table_of_numbers(frame: "pd.DataFrame", path: Path, label: str | None) -> Table:
    """The columns of a frame as one array, but the label.

    Raises
    ------
    ValueError
        If the label is no column, or another column holds something that is not a number.
    """
    import pandas as pd

    frame = frame.rename(columns=str)
    y = None
    if label is not None:
        if label not in frame.columns:
            raise ValueError(
                f"label={label!r} is not a column of {path}, whose columns are {list(frame.columns)}."
            )
        y = frame.pop(label).to_numpy()
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            continue
        for row, value in enumerate(column):
            if not _is_number(value):
                raise ValueError(
                    f"{path} holds {value!r} in row {row}, column {name!r}, and that is not a number: "
                    f"encode the column as numbers, drop it, or name it as label={name!r}."
                )
    return Table(frame.to_numpy(dtype=np.float64, na_value=np.nan), tuple(frame.columns), y)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return value is None
    return True
