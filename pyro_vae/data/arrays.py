"""Arrays from numpy's own files, never unpickled."""

__all__ = ["read_npy", "read_npz"]

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def read_npy(path: Path) -> Array:
    """The array in an .npy file, memory-mapped where that is possible.

    Raises
    ------
    ValueError
        If the file is truncated or corrupt, or holds Python objects.
    """
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError(f"{path} is not an .npy file, or it is corrupt: it lacks numpy's first bytes.")
    try:
        try:
            # copy-on-write: torch wants arrays that it may write to, and the file stays as it is
            array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
        except ValueError:
            # an empty array cannot be mapped, and what is damaged gets a better message without mapping
            array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error
    return array


def read_npz(path: Path) -> tuple[Array, Array | None]:
    """The arrays "x" and, if there is one, "y" of an .npz file; or its only array.

    Raises
    ------
    ValueError
        If the file is truncated or corrupt, holds Python objects, or has neither "x" nor just one array.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or it is truncated: it is no zip archive.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "x" not in archive and len(archive.files) != 1:
                raise ValueError(
                    f"its arrays are {', '.join(archive.files) or 'none'}, and x is not among them"
                )
            x: Array = archive["x" if "x" in archive else archive.files[0]]
            y: Array | None = archive["y"] if {"x", "y"} <= set(archive) else None
            if y is not None and y.shape != x.shape[:1]:
                raise ValueError(f"y has shape {y.shape}, and x has {len(x)} rows")
            return x, y
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    if "allow_pickle" in reason:
        reason = "it holds Python objects (dtype object), which are never unpickled; save plain numbers"
    return ValueError(f"{path} cannot be read: {reason}.")
