"""A data set with what a model must know of it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief, kind

FloatArray = npt.NDArray[np.floating]

STANDARDIZED = ("normal", "student-t")
"""Likelihoods of values in units of their own, which a study standardizes."""

SHOWN_COLUMNS = 12


@dataclass(frozen=True, eq=False)
class DataSet:
    """Observations and the likelihood that suits them.

    Attributes
    ----------
    name
        Name of the data set, or the stem of the file.
    x
        Observations (n, features), float32; a memory map if the file allowed one. float64 where float32 would
        lose the differences in a column, until :func:`standardize`.
    y
        Labels (n,), or None.
    likelihood, likelihood_args
        What ``models.likelihoods.get(likelihood, **likelihood_args)`` takes.
    image_shape
        (height, width) or (channels, height, width) if a row is an image, else None.
    columns
        Names of the features, or None.
    why
        Why that likelihood.
    left_out
        Columns of the file that are not among the features, and why.
    notes
        What a careful reader would ask about: numbers that may stand for missing values.

    Examples
    --------
    >>> data = DataSet("ramp", np.arange(8, dtype=np.float32).reshape(2, 4), image_shape=(2, 2))
    >>> len(data), data.images.shape
    (2, (2, 1, 2, 2))
    """

    name: str
    x: FloatArray
    y: npt.NDArray[Any] | None = None
    likelihood: str = "normal"
    likelihood_args: Mapping[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    why: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.x, np.ndarray):
            how = "x.numpy()" if hasattr(self.x, "numpy") else "np.asarray(x)"
            raise TypeError(f"x is {kind(self.x)}; give an array, {how}")
        if self.x.dtype.kind not in "fiub":
            raise TypeError(f"x has dtype {self.x.dtype}; give numbers")
        if self.x.ndim != 2:
            raise ValueError(f"x has shape {self.x.shape}; give (n, features)")
        if self.y is not None and len(self.y) != len(self.x):
            raise ValueError(f"y has {len(self.y)} labels for {len(self.x)} observations; give one for each")
        if self.image_shape is not None and math.prod(self.image_shape) != self.x.shape[1]:
            raise ValueError(
                f"image_shape is {self.image_shape}, which does not hold {self.x.shape[1]} features"
            )
        if self.columns is not None and len(self.columns) != self.x.shape[1]:
            raise ValueError(
                f"columns is {brief(self.columns)}, and there are {self.x.shape[1]} features; name each"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}: {self.description})"

    @property
    def description(self) -> str:
        """What it holds, in words.

        >>> DataSet("ramp", np.eye(2), columns=("a", "b"), why="it was asked for").description
        '2 rows, 2 columns (a, b); likelihood normal: it was asked for'
        """
        features = self.x.shape[1]
        kind = "columns" if self.image_shape is None else "pixels"
        told = f"{len(self)} rows, {features} {kind if features != 1 else kind[:-1]}"
        if self.columns is not None:
            shown = ", ".join(self.columns[:SHOWN_COLUMNS])
            told += f" ({shown}{', …' if features > SHOWN_COLUMNS else ''})"
        if self.left_out:
            told += "; left out " + ", ".join(f"{name!r} ({why})" for name, why in self.left_out.items())
        told += f"; likelihood {self.likelihood}" + (f": {self.why}" if self.why else "")
        return "; ".join([told, *(f"look: {note}" for note in self.notes)])

    @property
    def images(self) -> FloatArray:
        """The observations as (n, channels, height, width).

        Raises
        ------
        ValueError
            If they are not images.
        """
        if self.image_shape is None:
            raise ValueError(f"{self.name} has no image_shape: its rows are not images")
        channels = () if len(self.image_shape) == 3 else (1,)
        return self.x.reshape(len(self.x), *channels, *self.image_shape)


def split(data: DataSet, held_out: float | int = 0.2, *, seed: int = 0) -> tuple[DataSet, DataSet]:
    """Two disjoint parts drawn at random, for training and held out; each keeps the order of the whole.

    Parameters
    ----------
    data
        The whole.
    held_out
        How many rows to hold out: a share between 0 and 1, or a number of rows.
    seed
        The same seed gives the same parts on every machine.

    Raises
    ------
    TypeError
        If ``data`` is no DataSet or ``held_out`` no number.
    ValueError
        If one of the parts would be empty.

    Examples
    --------
    >>> train, test = split(DataSet("ramp", np.arange(10, dtype=np.float32)[:, None]), 0.3)
    >>> len(train), len(test)
    (7, 3)
    """
    require_data_set("data", data)
    require_seed(seed)
    if isinstance(held_out, bool) or not isinstance(held_out, Real):
        raise TypeError(f"held_out is {brief(held_out)}; give a share between 0 and 1, or a number of rows")
    whole = isinstance(held_out, Integral)
    if not whole and not held_out <= 1:
        raise ValueError(
            f"held_out is {brief(held_out)}; give a share between 0 and 1, or a whole number of rows"
        )
    n_held_out = int(held_out) if whole else round(held_out * len(data))
    if not 0 < n_held_out < len(data):
        raise ValueError(
            f"held_out is {held_out}, which of {len(data)} rows leaves one of the parts empty; give another"
        )
    order = np.random.default_rng(seed).permutation(len(data))

    def part(rows: npt.NDArray[np.intp]) -> DataSet:
        rows = np.sort(rows)
        return dataclasses.replace(data, x=data.x[rows], y=None if data.y is None else data.y[rows])

    return part(order[n_held_out:]), part(order[:n_held_out])


def standardize(data: DataSet, *, like: DataSet | None = None) -> DataSet:
    """Columns of mean 0 and standard deviation 1, for real data whose columns have units of their own.

    Parameters
    ----------
    data
        What to standardize.
    like
        Whose means and deviations to use: the training part, to standardize a held-out part. By default the
        data's own.

    Raises
    ------
    TypeError
        If ``data`` or ``like`` is no DataSet.
    ValueError
        If a column is constant or not finite, or the two have different columns.

    Examples
    --------
    >>> standardize(DataSet("ramp", np.array([[1.0], [3.0]], dtype=np.float32))).x.tolist()
    [[-1.0], [1.0]]
    """
    require_data_set("data", data)
    if like is not None:
        require_data_set("like", like)
        if like.x.shape[1] != data.x.shape[1]:
            raise ValueError(
                f"like has {like.x.shape[1]} features, and data has {data.x.shape[1]}; give one with as many"
            )
    reference = (data if like is None else like).x
    loc, scale = reference.mean(0, dtype=np.float64), reference.std(0, dtype=np.float64)
    if not np.isfinite(scale).all():
        column = int(np.argmin(np.isfinite(scale)))
        raise ValueError(
            f"{data.name} holds values that are not finite in column {column}; drop such rows or impute the "
            "values"
        )
    if not scale.all():
        column = int(np.argmin(scale))
        name = repr(data.columns[column]) if data.columns else column
        part = "" if like is None else " of the part whose deviations are used"
        raise ValueError(
            f"{data.name} is constant in column {name}{part}; drop it before standardizing, in a table by "
            "columns=[...] (--columns)"
        )
    return dataclasses.replace(data, x=((data.x - loc) / scale).astype(np.float32))


def require_data_set(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is a DataSet."""
    if not isinstance(value, DataSet):
        raise TypeError(f"{name} is {kind(value)}; give a DataSet, from load or DataSet(name, x)")


def require_seed(seed: Any) -> None:
    """Raise a ValueError unless ``seed`` is one."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {brief(seed)}; give an integer of at least 0")
