"""What an HDF5 file of ours looks like; a program that reads foreign ones before anybody else does.

It knows nothing of the package, so that the process that runs it (see
:mod:`pyro_vae.storage.inspection`) starts in a moment.
"""

import hashlib
import io
import json
import math
import os
import resource
import sys
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

DEEPEST = 16
"""Groups within groups."""

WITHOUT_VALUES = b"This is a netCDF dimension but not a netCDF variable"
"""How netCDF marks what has a size and no values."""

PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)

ROOM = 2**31
"""Bytes that the process may have beside a few copies of a file."""


def check_bytes(content: bytes) -> None:
    """Read everything in an HDF5 file, if it keeps the rules: what it names lies in itself, once, and it
    declares no more numbers than it holds. Raises Exception of any kind, if it does not, or cannot be read.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        _check_group(file, len(content), 0)


def _check_group(group: Any, size: int, depth: int) -> int:
    """The bytes that a group's numbers take; no more than there are in the file."""
    if depth > DEEPEST:
        raise ValueError("its groups are nested too deeply")
    taken = 0
    _read_attributes(group, size)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"its entry {name[:80]!r} is a link to somewhere else")
        entry = group[name]
        if h5py.h5o.get_info(entry.id).rc != 1:
            raise ValueError(f"its entry {name[:80]!r} has a second name")
        if isinstance(entry, h5py.Group):
            taken += _check_group(entry, size, depth + 1)
        elif isinstance(entry, h5py.Dataset):
            taken += _check_dataset(entry, name, size)
        else:
            raise ValueError(f"its entry {name[:80]!r} is neither a group nor an array")
        if taken > size:
            raise ValueError("its arrays overlap")
    return taken


def _check_dataset(dataset: Any, name: str, size: int) -> int:
    _read_attributes(dataset, size)
    kind = dataset.id.get_type()
    if dataset.external is not None or dataset.is_virtual:
        raise ValueError(f"its array {name[:80]!r} lies in another file")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(f"its array {name[:80]!r} is packed")
    if kind.get_class() not in PLAIN:
        raise ValueError(f"its array {name[:80]!r} holds neither numbers nor text")
    if bytes(dataset.attrs.get("NAME", b"")).startswith(WITHOUT_VALUES):
        return 0
    declared, held = math.prod(dataset.shape) * kind.get_size(), dataset.id.get_storage_size()
    if not declared <= held <= size:
        raise ValueError(f"its array {name[:80]!r} declares {declared} bytes and holds {held}")
    values = dataset[()]
    texts = np.asarray(values).flat if dataset.dtype.kind == "O" else ()
    return max(int(held), sum(map(len, texts)))


def _read_attributes(entry: Any, size: int) -> None:
    for name in entry.attrs:
        held, attribute = 0, h5py.h5a.open(entry.id, name.encode(errors="surrogateescape"))
        with suppress(RuntimeError):  # HDF5 says "size 0" of an empty one, which h5py takes for a failure
            held = attribute.get_storage_size()
        if held > size:
            raise ValueError(f"its attribute {name[:80]!r} is larger than the file")
        entry.attrs[name]


def main() -> None:
    """Check the files whose paths are the JSON list on standard input; a line for each when it is read (its
    checksum), and one when it is checked (what is wrong with it, or nothing)."""
    paths = json.load(sys.stdin)
    for path in paths:
        content = b""
        with suppress(OSError, MemoryError), open(path, "rb") as file:
            content = file.read()
        print(json.dumps(hashlib.sha256(content).hexdigest()), flush=True)
        with suppress(ValueError, OSError):  # where there are no such limits
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (ROOM + 8 * len(content), hard))
        problem = ""
        try:
            check_bytes(content)
        except Exception as error:
            problem = f"{error}".split("\n")[0] or type(error).__name__
        print(json.dumps(problem), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a library that read damaged files need not tidy up
