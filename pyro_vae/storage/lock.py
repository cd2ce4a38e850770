"""Let one writer in at a time, by a lock that dies with its holder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of the file that a folder's writer holds, and suffix of the one that a file's does."""


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold a folder, or a file that may not exist yet, for writing, for this block.

    The lock is the kernel's (``flock``) on a file of its own: it is released when the process ends, in
    whatever way, so that nothing is left to clean up after a crash. Raises BlockingIOError if another
    process, or another thread, holds it; OSError if there cannot be a file beside it, or in it if it is a
    folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with locked(folder), locked(folder):
    ...     pass
    Traceback (most recent call last):
        ...
    BlockingIOError: [Errno 11] another process (process ...) is writing there; ...
    """
    path = target / LOCK if target.is_dir() else target.with_name(f".{target.name}{LOCK}")
    descriptor = _hold(path, target)
    try:
        if os.fstat(descriptor).st_nlink == 1:  # a second name, that somebody else gave it, keeps its content
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _hold(path: Path, target: Path) -> int:
    """The open lock file, held; the one that bears the name, for its last holder may have removed it between
    our opening and our holding it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "it has just begun"
            os.close(descriptor)
            sentence = f"another process ({holder}) is writing there; wait for it or name another"
            raise BlockingIOError(errno.EWOULDBLOCK, sentence, str(target)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
