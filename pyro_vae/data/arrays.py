"""Arrays from numpy's own files, never unpickled, and never larger than what they lie in."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from pyro_vae.arguments import brief, cut

Array = npt.NDArray[Any]

LARGE = 2**30
"""Bytes that are worth asking what they were packed in."""

PACKED_TIMES = 100
"""Data do not shrink more than that; what a few bytes are blown up to does."""


def read_npy(path: Path) -> Array:
    """The array in an .npy file, memory-mapped where that is possible. Raises ValueError if the file is
    truncated or corrupt, or holds Python objects."""
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it is not an .npy file, or it is corrupt: it lacks numpy's first bytes")
            file.seek(0)
            size = _declared_size(file)
            held = path.stat().st_size - file.tell()
        if size > held:
            raise ValueError(f"it is truncated: it declares {size} bytes of numbers and holds {held}")
        # copy-on-write: torch wants arrays that it may write to, and the file stays as it is; what is empty
        # cannot be mapped
        array: Array = np.load(path, mmap_mode="c" if size else None, allow_pickle=False)
    except Exception as error:  # numpy lets through whatever its parser of headers meets
        raise _unreadable(path, error) from error
    return array


def read_npz(path: Path) -> tuple[Array, Array | None]:
    """The arrays "x" and, if there is one, "y" of an .npz file; or its only array. Raises ValueError if the
    file is truncated or corrupt, holds Python objects, or has neither "x" nor just one array."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file, or it is truncated: it is no zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "x" not in names and len(names) != 1:
                told = cut(", ".join(names)) or "none"
                raise ValueError(
                    f"its arrays are {told}, and x is not among them; save the one to model as x"
                )
            x = _member(archive, archive.namelist()[names.index("x") if "x" in names else 0])
            y = _member(archive, archive.namelist()[names.index("y")]) if {"x", "y"} <= {*names} else None
            if y is not None and y.shape != x.shape[:1]:
                rows = f"{len(x)} rows" if x.ndim else "none"
                raise ValueError(f"y has shape {y.shape}, and x has {rows}")
            return x, y
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own
        raise _unreadable(path, error) from error


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    about = archive.getinfo(name)
    if about.flag_bits & 1:
        raise ValueError(f"its array {brief(name)} is encrypted; save it without a password")
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its array {brief(name)} is packed in a way that numpy does not use")
    require_unpackable(about.file_size, about.compress_size)
    with archive.open(name) as stream:
        if stream.read(6) != b"\x93NUMPY":
            raise ValueError(f"its entry {brief(name)} is no array")
    with archive.open(name) as stream:
        size = _declared_size(stream)
        held = about.file_size - stream.tell()
    if size > held:
        raise ValueError(f"its array {brief(name)} declares {size} bytes of numbers and holds {held}")
    with archive.open(name) as stream:
        array: Array = npy_format.read_array(stream, allow_pickle=False)
    return array


def require_unpackable(unpacked: int, packed: int) -> None:
    """Refuse what a small file claims to be blown up to.

    >>> require_unpackable(16 * 2**30, 16 * 2**20)
    Traceback (most recent call last):
        ...
    ValueError: it unpacks to 17.2 GB from 16.8 MB, and data do not shrink like that; save them unpacked
    """
    if unpacked > LARGE and unpacked > PACKED_TIMES * packed:
        raise ValueError(
            f"it unpacks to {unpacked / 1e9:.1f} GB from {packed / 1e6:.1f} MB, and data do not shrink like "
            "that; save them unpacked"
        )


def _declared_size(stream: IO[bytes]) -> int:
    """The bytes of numbers that the header of an .npy file promises; the stream is behind it then."""
    version = npy_format.read_magic(stream)
    if version[0] > 3:
        raise ValueError(f"its version {version} of the format is not known")
    if version == (1, 0):
        shape, _, dtype = npy_format.read_array_header_1_0(stream)
    else:  # version 3 differs in how it writes names of fields, which are not wanted here
        shape, _, dtype = npy_format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects (dtype object), which are never unpickled; save plain numbers"
        )
    if any(side < 0 for side in shape):
        raise ValueError("a size in its header is negative")
    return math.prod(shape) * dtype.itemsize


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    if type(error) is not ValueError or not reason.startswith(("it", "y has", "a size")):
        reason = f"it is damaged ({type(error).__name__}{f': {brief(reason)}' if reason else ''})"
    return ValueError(f"{path} cannot be read: {reason}")
