"""Read rows of an array in a file (memory-mapped, zarr, HDF5) when they are asked for, so that data may be
larger than the memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.arrays import native_array

VALUES_AT_ONCE = 4_194_304


def read_rows(array: Any, rows: slice | NDArray[Any]) -> NDArray[Any]:
    """Some rows of an array, in memory or in a file.

    Rows named one by one are read in the order of the file, which is what HDF5 takes and disks like.
    """
    if isinstance(array, np.ndarray) or isinstance(rows, slice):
        return np.asarray(array[rows])
    distinct, back = np.unique(rows, return_inverse=True)
    by_row = getattr(array, "oindex", array)  # zarr means something else by a[rows]
    return np.asarray(by_row[distinct])[back]


def row_chunks(rows: Any) -> Iterator[slice]:
    """Slices of a few million values each: what is looked at as a whole is looked at in these.

    >>> [len(range(7)[part]) for part in row_chunks(torch.zeros(7, 2_000_000))]
    [2, 2, 2, 1]
    """
    size = max(1, VALUES_AT_ONCE // max(1, int(np.prod(rows.shape[1:]))))
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


class MappedRows:
    """An array in a file in the place of a tensor: what is asked for becomes one, the whole never does.

    Parameters
    ----------
    array
        Observations first; never written to.
    device, dtype
        Of the tensors that come out; ``dtype`` is for floating point, other numbers stay what they are.
    as_floats
        Unless they are meant as floating point too.

    Examples
    --------
    >>> rows = MappedRows(np.arange(6.0).reshape(3, 2), torch.device("cpu"), torch.float32)
    >>> rows[:2], rows.index_select(0, torch.tensor([2]))
    (tensor([[0., 1.],
            [2., 3.]]), tensor([[4., 5.]]))
    """

    def __init__(
        self, array: Any, device: torch.device, dtype: torch.dtype, *, as_floats: bool = False
    ) -> None:
        self.array, self.device, self.float_dtype, self.as_floats = array, device, dtype, as_floats

    def __len__(self) -> int:
        return int(self.array.shape[0])

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        return torch.Size(self.array.shape)

    @property
    def ndim(self) -> int:
        """Of the whole."""
        return int(self.array.ndim)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Some rows as a tensor of their own: a copy, so that a program may write into it."""
        chosen = read_rows(self.array, rows.cpu().numpy() if isinstance(rows, Tensor) else rows)
        native = native_array(np.array(chosen, order="C"))
        dtype = self.float_dtype if native.dtype.kind == "f" or self.as_floats else None
        return torch.from_numpy(native).to(device=self.device, dtype=dtype)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """As ``Tensor.index_select``, for ``dim`` 0."""
        assert dim == 0
        return self[rows]
