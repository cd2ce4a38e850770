"""The IDX format, in which MNIST and its relatives are distributed."""

__all__ = ["read_idx"]

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in an IDX file, gzipped or not.

    The file starts with two zero bytes, a code for the type of number and the number of dimensions; then come
    the sizes and the numbers, all big-endian (Y. LeCun, C. Cortes and C. Burges, The MNIST database).

    Raises
    ------
    ValueError
        If the file is corrupt, truncated, or not IDX at all.
    """
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} cannot be unpacked, so it is truncated or corrupt ({error}): download it again."
            ) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with the bytes {content[:4].hex(' ')}.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated: it ends within its header. Download it again.")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    dtype = np.dtype(_DTYPES[content[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "corrupt"
        raise ValueError(
            f"{path} is {problem}: shape {shape} needs {expected} bytes and the file has {len(content)}. "
            "Download it again."
        )
    return np.frombuffer(content[start:], dtype).reshape(shape).astype(dtype.newbyteorder("="))
