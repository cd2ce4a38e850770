"""Keep builds in a folder that belongs to this user alone, within bounds: what was not used for longest goes
first."""

import atexit
import functools
import logging
import os
import shutil
import stat
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_BYTES = 256 * 2**20
"""Room for some 3,000 builds."""

BUILDING = "building-"
"""How the name of a folder begins in which a build is under way."""

ABANDONED_AFTER = 3600.0
"""Seconds after which nobody builds in such a folder any more; its process was killed."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/pyro-vae`` or ``~/.cache/pyro-vae``, if nobody but this user may write there: what
    lies in it will be run. Else a folder for this process, and the log says why, once.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG base directory specification has it.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
        folder = base / "pyro-vae"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _problem(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where this user's home is
        return _folder_of_process(str(error))
    return _folder_of_process(problem) if problem else folder


def _problem(folder: Path) -> str:
    """Why what lies in a folder cannot be trusted, or cannot be written; nothing, if it can."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    if not is_own(folder.stat()):
        return f"others may write in {folder}, and what lies there is run"
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"others may replace {folder}, for everybody may write in {above}"
    return ""


def is_own(status: os.stat_result) -> bool:
    """Whether something belongs to this user, and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@functools.cache
def _folder_of_process(problem: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pyro-vae-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logger.warning(
        "%s: compiled steps are kept for this process alone; give XDG_CACHE_HOME, a folder of your own",
        problem,
    )
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
