"""The IDX format, in which MNIST and its relatives are distributed."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief, cut
from pyro_vae.data.arrays import require_unpackable

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

AGAIN = "download it again"


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in an IDX file, gzipped or not.

    The file starts with two zero bytes, a code for the type of number and the number of dimensions; then come
    the sizes and the numbers, all big-endian (Y. LeCun, C. Cortes and C. Burges, The MNIST database). Raises
    ValueError if the file is corrupt, truncated, or not IDX at all."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with cast(BinaryIO, gzip.open(path) if zipped else path.open("rb")) as stream:
            shape, dtype = _header(stream, path)
            start, size = 4 + 4 * len(shape), path.stat().st_size
            needed = start + math.prod(shape) * dtype.itemsize
            if not zipped and needed > size:
                raise ValueError(f"{path} is truncated: {_promise(shape, needed)} {size}; {AGAIN}")
            require_unpackable(needed, size)
            content = stream.read(needed - start + 1)  # no more is unpacked, whatever there is
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be unpacked, so it is truncated or corrupt ({cut(str(error))}); download it again"
        ) from error
    held = start + len(content)
    if held < needed:
        raise ValueError(f"{path} is truncated: {_promise(shape, needed)} {held}; {AGAIN}")
    if held > needed:
        raise ValueError(f"{path} is corrupt: {_promise(shape, needed)} more; {AGAIN}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the numbers; the stream is where they begin then."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with the bytes {start.hex(' ')}")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(f"{path} is truncated: it ends within its header; {AGAIN}")
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4")), np.dtype(_DTYPES[start[2]])


def _promise(shape: tuple[int, ...], needed: int) -> str:
    return f"shape {brief(shape)} needs {needed} bytes and the file has"
