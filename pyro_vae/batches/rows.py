"""Put data on the device as rows: tensors, or arrays in files, checked to be finite before anything is
fitted."""

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arrays import as_tensor, is_file_array, is_mapped, lost_columns, plain_array
from pyro_vae.batches.files import MappedRows, row_chunks
from pyro_vae.batches.streams import is_stream, whole_stream

Rows = Tensor | MappedRows
Check = Callable[[Tensor, str], None]
"""Raises if values cannot come from the model's likelihood; knows what a sentence calls them."""


def as_tensors(
    data: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "data",
    floats: Collection[int] = (),
) -> tuple[Tensor, ...]:
    """Whatever :func:`~pyro_vae.arrays.plain_array` takes, a tuple of them, or the batches of a loader, on
    the device; floating point becomes ``dtype``, and so do the integers of the parts ``floats``. Raises
    TypeError if an element is no array; ValueError if it is empty, has NaN, infinite or masked values, its
    differences are lost in ``dtype``, or the lengths differ."""
    rows = as_rows(data, device=device, dtype=dtype, name=name, floats=floats)
    return tuple(part[:] if isinstance(part, MappedRows) else part for part in rows)


def as_rows(
    data: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "data",
    floats: Collection[int] = (),
) -> tuple[Rows, ...]:
    """As :func:`as_tensors`, but memory-mapped arrays stay in their files."""
    parts, labels = plain_parts(data, name)
    rows = tuple(
        _as_rows(part, label, device, dtype, i in floats)
        for i, (part, label) in enumerate(zip(parts, labels, strict=True))
    )
    lengths = {len(part) for part in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"the parts of {name} have {sorted(lengths)} observations; they must have equally many"
        )
    return rows


def plain_parts(data: Any, name: str = "data") -> tuple[tuple[Any, ...], list[str]]:
    """The arguments of the programs as tensors and arrays, and what a sentence calls each."""
    if is_stream(data):
        data = whole_stream(data)
    parts = data if isinstance(data, tuple) else (data,)
    if not parts:
        raise ValueError(f"{name} is an empty tuple; give a tensor, a numpy array, or a tuple of them")
    labels = [f"{name}[{i}]" if isinstance(data, tuple) else name for i in range(len(parts))]
    plain = [plain_array(part, label) for part, label in zip(parts, labels, strict=True)]
    # data are constants, whatever made them
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in plain), labels


def _as_rows(part: Any, label: str, device: torch.device, dtype: torch.dtype, as_floats: bool) -> Rows:
    if part.ndim == 0 or part.shape[0] == 0:
        raise ValueError(f"{label} has shape {tuple(part.shape)}, so there is no observation in it")
    if 0 in part.shape:
        raise ValueError(f"{label} has shape {tuple(part.shape)}, so there is no number in it")
    _require_differences(part, label, dtype)
    rows = _placed(part, label, device, dtype, as_floats)
    for chunk in row_chunks(rows):
        values = rows[chunk]
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            continue
        where = tuple(int(i) for i in (~torch.isfinite(values)).nonzero()[0])
        where = (chunk.start + where[0], *where[1:])
        value = float(part[where])
        remedy = (
            f"it overflows {dtype}: rescale the data"
            if math.isfinite(value)
            else "remove or impute what is not finite"
        )
        raise ValueError(f"{label} is {value} at index {where}; {remedy}")
    return rows


def _require_differences(part: Any, label: str, dtype: torch.dtype) -> None:
    """Refuse numbers whose differences are lost where they become float32."""
    if dtype != torch.float32 or part.dtype not in (torch.float64, np.dtype(np.float64)):
        return
    some = part[next(row_chunks(part))]  # of an array in a file the first few million values
    values = some.detach().cpu().numpy() if isinstance(some, Tensor) else np.asarray(some)
    lost = lost_columns(values.reshape(len(values), -1))
    if lost:
        raise ValueError(
            f"{label} holds values near {values.reshape(len(values), -1)[0, lost[0]]:g} in column {lost[0]}, "
            "whose differences float32 loses; standardize the column in float64 before, as "
            "pyro_vae.data.standardize does, or give model and guide float64 parameters by .double()"
        )


def _placed(part: Any, label: str, device: torch.device, dtype: torch.dtype, as_floats: bool) -> Rows:
    if is_mapped(part) or is_file_array(part):
        return MappedRows(part, device, dtype, as_floats=as_floats)
    tensor = as_tensor(part, label, device, dtype)
    return tensor.to(dtype) if as_floats else tensor


def check_rows(check: Check, rows: Any, name: str) -> None:
    """Let ``check`` look at a tensor, or at an array piece by piece."""
    if isinstance(rows, Tensor):
        check(rows, name)
        return
    if not isinstance(rows, MappedRows):
        rows = MappedRows(rows, torch.device("cpu"), torch.get_default_dtype())
    for chunk in row_chunks(rows):
        check(rows[chunk], name if chunk.start == 0 else f"{name}[{chunk.start}:]")
