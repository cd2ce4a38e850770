"""Write a file whole or not at all."""

import errno
import os
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; one that a killed process left is replaced by the next."""


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that at every moment, a power cut included, it is the old one or the new one.

    The content goes to a temporary file in the same folder, is forced to the disk, and takes the name by a
    rename, which is forced to the disk too. The temporary file is always a new one: where its name is taken,
    by a link for example that somebody has put there, the name goes and what it points to stays as it is.
    Raises OSError if it cannot be written (a full disk, a read-only folder); the old file is as it was.

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
        descriptor = _new_file(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if not os.path.samestat(os.fstat(file.fileno()), temporary.lstat()):
                    raise OSError(errno.EBUSY, "another process is writing it")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    sync_folder(path.parent)


def _new_file(path: Path) -> int:
    """A file of this name that did not exist, open for writing."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
