"""Find the line of the user's own program that is the reason: where a traceback or the running code left
it."""

import functools
import glob
import importlib.util
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from types import FrameType, TracebackType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STANDARD = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
_LIBRARIES = ("torch", "pyro", "numpy", "opt_einsum")


def is_library(filename: str) -> bool:
    """Whether code of this file is no program of a user: torch, Pyro, Python itself, this package.

    >>> is_library(linecache.__file__), is_library("/home/me/model.py")
    (True, False)
    """
    if filename.startswith(("<frozen", "<string", "<eval_with_key")):
        return True
    if _is_own(filename) or filename.startswith(_library_folders()):
        return True
    return not filename or (filename.startswith(_STANDARD) and not is_installed(filename))


def is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed package: its functions may be a program, its state is none."""
    parts = filename.replace("\\", "/").split("/")
    usual = "site-packages" in parts or "dist-packages" in parts
    return usual or filename.startswith(_places_of_installation())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    """Where they are imported from: not only ``site-packages``, for there are ``pip install --target`` and
    clones."""
    specs = filter(None, map(importlib.util.find_spec, _LIBRARIES))
    return tuple(os.path.dirname(spec.origin) + os.sep for spec in specs if spec.origin)


@functools.cache
def _places_of_installation() -> tuple[str, ...]:
    """The folders beside theirs, where an installer has left its records there."""
    beside = {os.path.dirname(folder.rstrip(os.sep)) for folder in _library_folders()}
    return tuple(
        folder + os.sep for folder in sorted(beside) if glob.glob("*.dist-info", root_dir=folder or os.sep)
    )


def _is_own(filename: str) -> bool:
    return filename.startswith(_PACKAGE + os.sep) and f"{os.sep}tests{os.sep}" not in filename


def calling_line() -> str | None:
    """The innermost line of a user's program that is running now, as :func:`line_of` writes it; where Pyro
    asks a distribution by itself, Pyro's own line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_own(filename_of(frame)):
        frame = frame.f_back
    of_pyro = None
    while frame is not None and not _is_own(filename_of(frame)):
        if not is_library(filename_of(frame)):
            return line_of(filename_of(frame), frame.f_lineno)
        if of_pyro is None and "/pyro/" in filename_of(frame):
            of_pyro = line_of(filename_of(frame), frame.f_lineno)
        frame = frame.f_back
    return of_pyro


def filename_of(frame: FrameType) -> str:
    """Of the code that runs there, with slashes."""
    return frame.f_code.co_filename.replace("\\", "/")


def blamed(error: BaseException) -> str | None:
    """The innermost line of a user's program that an error passed through."""
    found = None
    for seen in _chain(error):
        place: TracebackType | None = seen.__traceback__
        while place is not None:
            filename = place.tb_frame.f_code.co_filename
            if _is_own(filename):
                found = None  # the user's lines outside are the call of this package
            elif not is_library(filename):
                found = line_of(filename, place.tb_lineno)
            place = place.tb_next
        if found:
            return found
    return found


def line_of(filename: str, number: int) -> str:
    """File, number and text of a line: ``model.py, line 12: n = int(x.sum())``."""
    text = linecache.getline(filename, number).strip()
    where = f"{os.path.basename(filename)}, line {number}"
    return f"{where}: {text}" if text else where


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Causes first: there the program's own line is deepest."""
    if error is not None:
        yield from _chain(error.__cause__)
        yield error
