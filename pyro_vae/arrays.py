"""What people bring in the place of a tensor: arrays of numpy, pandas, xarray and others, and lists of them.

One function looks at them all, so that what is taken by one part of the library is taken by every other.
"""

import itertools
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.arguments import kind

MOST_PARTS = 4
"""Of more integer parts either none or all are meant as floating point."""

TOLERATED = 1e-3
"""Rounding, in standard deviations of a column, that no model would notice."""


def plain_array(part: Any, name: str = "data") -> Any:
    """A tensor as it is, an array in a file as it is, anything else as a numpy array that torch can take.

    Masked arrays without a masked value, foreign byte orders, negative strides, and integers that torch does
    not have are copied; data frames, series, data arrays and lists of arrays become arrays. Raises TypeError
    if it is no array of real numbers; ValueError if values are masked, or the arrays of a list have different
    shapes.

    Parameters
    ----------
    part
        Of the data: one argument of the programs.
    name
        What a sentence calls it.

    Examples
    --------
    >>> plain_array([np.zeros(3), np.ones(3)]).shape
    (2, 3)
    >>> plain_array(np.ma.masked_array([1.0, 2.0], [False, True]), "x")
    Traceback (most recent call last):
    ValueError: x is a masked array, 1 of whose values is masked; drop the rows, or impute and give...
    """
    if isinstance(part, Tensor):
        real = _real(part, name)
        return real.clone() if real.is_inference() else real  # autograd refuses such tensors
    if isinstance(part, np.ma.MaskedArray):
        return plain_array(_unmasked(part, name), name)
    if isinstance(part, np.ndarray):
        return part if is_mapped(part) and part.dtype.kind in "fiub" else native_array(part, name)
    if hasattr(part, "toarray"):
        raise TypeError(f"{name} is {kind(part)}, sparse; give {name}.toarray()")
    if hasattr(part, "to_numpy"):
        return plain_array(_table(part, name), name)
    if is_file_array(part):
        if part.dtype.kind not in "fiub":
            raise TypeError(f"{name} is an array of dtype {part.dtype}; give numbers")
        return part
    if isinstance(part, list) and part and all(map(_is_array, part)):
        return plain_array(_stacked(part, name), name)
    raise TypeError(
        f"{name} is {kind(part)}; give a tensor, an array, or a tuple of them; a numpy array or a "
        f"data frame will do{_hint(part, name)}"
    )


def as_tensor(part: Any, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What :func:`plain_array` takes as a tensor on a device; floating point becomes ``dtype``, integers stay
    what they are. Gradients flow through it.

    >>> as_tensor(np.array([[1.5, 2.0]]), "x", torch.device("cpu"), torch.float64)
    tensor([[1.5000, 2.0000]], dtype=torch.float64)
    """
    array = plain_array(part, name)
    if not isinstance(array, Tensor):
        array = np.asarray(array)
        # torch knows no arrays that must not be written to
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    placed: Tensor = array.to(device=device, dtype=dtype if array.is_floating_point() else None)
    return placed


def subsets(positions: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Which of some integer parts may be meant as floating point, fewest first.

    >>> list(subsets([0, 2]))
    [(), (0,), (2,), (0, 2)]
    """
    if len(positions) > MOST_PARTS:
        yield from ((), tuple(positions))
        return
    for size in range(len(positions) + 1):
        yield from itertools.combinations(positions, size)


def is_file_array(part: Any) -> bool:
    """Whether something is an array of a library that reads it piece by piece: zarr's, h5py's, or another
    with ``shape``, ``dtype`` and numpy's way of asking for rows. What has a ``to_numpy`` is in memory, and so
    is what is sparse."""
    like_an_array = all(hasattr(part, name) for name in ("shape", "dtype", "ndim", "__getitem__"))
    in_memory = isinstance(part, np.ndarray | Tensor) or hasattr(part, "to_numpy") or hasattr(part, "toarray")
    return like_an_array and not in_memory and isinstance(part.dtype, np.dtype)


def is_mapped(part: Any) -> bool:
    """Whether an array's values lie in a file (``numpy.load(path, mmap_mode="r")``), it or what it views."""
    while isinstance(part, np.ndarray):
        part = part.base
    return isinstance(part, mmap.mmap)


def lost_columns(x: NDArray[Any]) -> list[int]:
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
    usable = np.isfinite(lowest) & np.isfinite(highest) & (highest > lowest)
    size = np.maximum(np.abs(lowest), np.abs(highest))
    found = []
    for column in np.flatnonzero(usable):
        # the deviation is at most half of the range: a cheap look settles almost every column
        if size[column] * np.finfo(np.float32).eps * 256 < TOLERATED * (highest - lowest)[column]:
            continue
        values = np.asarray(x[:, column], dtype=np.float64)
        rounded = values.astype(np.float32)
        if np.abs(values - rounded).max() <= TOLERATED * values.std():
            continue
        # what is float32's own text has lost nothing
        if not np.array_equal(rounded.astype(str).astype(np.float64), values):
            found.append(int(column))
    return found


def _real(part: Tensor, name: str) -> Tensor:
    if part.is_meta:
        raise TypeError(f"{name} is a tensor of the meta device, without values; give one with values")
    if part.is_complex():
        raise TypeError(f"{name} is a tensor of dtype {part.dtype}, complex; give numbers that are real")
    if part.is_nested:
        raise TypeError(f"{name} is a nested tensor; pad it: torch.nested.to_padded_tensor({name}, 0.0)")
    if part.layout is not torch.strided:
        raise TypeError(f"{name} is a sparse tensor; give {name}.to_dense()")
    if part.is_quantized:
        raise TypeError(f"{name} is a quantized tensor; give {name}.dequantize()")
    return part


def _unmasked(part: "np.ma.MaskedArray[Any, Any]", name: str) -> NDArray[Any]:
    masked = int(np.ma.getmaskarray(part).sum())
    if masked:
        raise ValueError(
            f"{name} is a masked array, {masked} of whose values {'is' if masked == 1 else 'are'} masked; "
            f"drop the rows, or impute and give {name}.filled(...)"
        )
    return np.asarray(part.data)


def native_array(array: NDArray[Any], name: str = "data") -> NDArray[Any]:
    """An array of a dtype, byte order and strides that torch has; not copied if it is one already.

    >>> native_array(np.arange(3, dtype=">u4")[::-1]).dtype
    dtype('int64')
    """
    if array.dtype.kind not in "fiub":
        remedy = f", such as {name}.astype(float)" if array.dtype.kind == "O" else ""
        if array.dtype.kind == "O" and array.size and hasattr(array.flat[0], "shape"):
            remedy = f", such as numpy.stack({name})"
        raise TypeError(f"{name} is an array of dtype {array.dtype}; give numbers{remedy}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds {array.max()}, which no signed integer holds; give floats")
        array = array.astype(np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if any(step < 0 for step in array.strides) else array


def _table(part: Any, name: str) -> NDArray[Any]:
    """The numbers of a data frame, a series or a data array; what is missing becomes NaN, which is told."""
    columns = getattr(part, "columns", None)
    if columns is not None and hasattr(part, "__getitem__"):
        for column in columns:
            one = np.asarray(part[column].to_numpy()) if _is_distinct(columns) else np.zeros(0)
            if one.dtype.kind not in "fiubO" or (one.dtype.kind == "O" and not _are_numbers(one)):
                raise TypeError(
                    f"{name} has a column {column!r} of dtype {getattr(part[column], 'dtype', one.dtype)}; "
                    "encode it as numbers, or drop it"
                )
    array = part.to_numpy()
    if array.dtype.kind != "O" or not _are_numbers(array.ravel()):
        return np.asarray(array)
    return np.array([[_number(v) for v in row] for row in array.reshape(len(array), -1)]).reshape(array.shape)


def _is_distinct(columns: Any) -> bool:
    names = list(columns)
    return len(set(map(str, names))) == len(names)


def _are_numbers(values: NDArray[Any]) -> bool:
    return all(_is_missing(v) or isinstance(v, int | float | np.number | np.bool_) for v in values)


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType"


def _number(value: Any) -> float:
    return float("nan") if _is_missing(value) else float(value)


def _stacked(parts: Sequence[Any], name: str) -> NDArray[Any]:
    """A list of equal arrays, one for each observation, as one."""
    whole = []
    for part in parts:
        array = plain_array(part, name)
        whole.append(array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array))
    shapes = {array.shape for array in whole}
    if len(shapes) > 1:
        told = " and ".join(map(str, sorted(shapes)[:2]))
        raise ValueError(
            f"{name} is a list of arrays of different shapes, {told}; give "
            "a tuple for programs of several arguments, or a list of equal arrays, one for each observation"
        )
    return np.stack(whole)


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray | Tensor) or hasattr(part, "to_numpy") or hasattr(part, "toarray")


def _hint(part: Any, name: str) -> str:
    """Where the array lies, of things that are often given in its place."""
    if isinstance(part, str):
        return "; pyro_vae.data.load reads files and data sets by name"
    if isinstance(part, list):
        return f", such as numpy.asarray({name})"
    if isinstance(part, dict):
        given = name if name.isidentifier() else "batch"
        return f": the arguments of the programs in their order, tuple({given}.values())"
    if hasattr(part, "data_vars"):
        return ": one of its variables"
    return ": its .x" if hasattr(part, "x") else ""
