"""Writing a file whole or not at all."""

import os
from pathlib import Path

__all__ = ["TEMPORARY", "sync_folder", "write_whole"]

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; one that a killed process left is overwritten by the next."""


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at every moment, a power cut included, it is the old one or the new one.

    The content goes to a temporary file in the same folder, is forced to the disk, and takes the name by a
    rename, which is forced to the disk too.

    Raises
    ------
    OSError
        If it cannot be written (a full disk, a read-only folder); the old file is as it was.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_whole(path, b"old")
    >>> write_whole(path, b"new")
    >>> path.read_bytes(), [p.name for p in path.parent.iterdir()]
    (b'new', ['note'])
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
