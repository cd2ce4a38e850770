"""Find the line of the user's own program that is the reason: where a traceback or the running code left
it."""

import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

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
    parts = filename.replace("\\", "/").split("/")
    if "site-packages" in parts:
        below = parts[len(parts) - parts[::-1].index("site-packages") :]
        return below[0].removesuffix(".py") in _LIBRARIES or _is_own(filename)
    return filename.startswith(_STANDARD) or _is_own(filename) or not filename


def is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed package: its functions may be a program, its state is none."""
    return "site-packages" in filename.replace("\\", "/").split("/")


def _is_own(filename: str) -> bool:
    return filename.startswith(_PACKAGE + os.sep) and f"{os.sep}tests{os.sep}" not in filename


def calling_line() -> str | None:
    """The innermost line of a user's program that is running now, as :func:`line_of` writes it."""
    frames = _outwards(sys._getframe(1))
    return next((line_of(f.f_code.co_filename, f.f_lineno) for f in frames), None)


def blamed(error: BaseException) -> str | None:
    """The innermost line of a user's program that an error passed through."""
    found = None
    for seen in _chain(error):
        place: TracebackType | None = seen.__traceback__
        while place is not None:
            filename = place.tb_frame.f_code.co_filename
            if not is_library(filename):
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


def _outwards(frame: FrameType | None) -> Iterator[Any]:
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Causes first: there the program's own line is deepest."""
    if error is not None:
        yield from _chain(error.__cause__)
        yield error
