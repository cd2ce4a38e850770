"""The folder that builds are kept in, and its bound: what was not used for longest goes first."""

import atexit
import functools
import os
import shutil
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

__all__ = ["BUILDING", "cache_folder", "mark_used", "prune"]

MOST_BYTES = 256 * 2**20
"""Room for some 3,000 builds."""

BUILDING = "building-"
"""How the name of a folder begins in which a build is under way."""

ABANDONED_AFTER = 3600.0
"""Seconds after which nobody builds in such a folder any more; its process was killed."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/pyro-vae`` or ``~/.cache/pyro-vae``; where that cannot be written, one for this
    process."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "pyro-vae"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return _folder_of_process()
    return folder if os.access(folder, os.W_OK) else _folder_of_process()


@functools.cache
def _folder_of_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pyro-vae-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def mark_used(entry: Path) -> None:
    """So that it is not the next to go."""
    with suppress(OSError):  # it is another user's, or was removed meanwhile
        os.utime(entry)


def prune(folder: Path) -> None:
    """Remove the builds that were not used for longest, each with what was measured of it, until the others
    have at most ``MOST_BYTES``; and what processes that were killed while they built have left.

    Any number of processes may use the folder and prune it meanwhile: a library that is loaded stays so when
    its name is gone. What cannot be removed stays.
    """
    used: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    files: dict[str, list[Path]] = defaultdict(list)
    for path in folder.glob("*"):
        with suppress(OSError):  # another process was faster
            status = path.stat()
            if path.name.startswith(BUILDING):
                if time.time() - status.st_mtime > ABANDONED_AFTER:
                    shutil.rmtree(path, ignore_errors=True)
            elif path.suffix in (".so", ".speedup"):
                key = path.name.split("-")[0]
                used[key] = max(used[key], status.st_mtime)
                sizes[key] += status.st_size
                files[key].append(path)
    total = 0
    for key in sorted(used, key=used.__getitem__, reverse=True):
        total += sizes[key]
        if total > MOST_BYTES:
            for path in files[key]:
                with suppress(OSError):
                    path.unlink()
