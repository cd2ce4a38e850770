"""Build C++ source by the machine's own compiler and load it; builds are kept in a cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vae.svi.engines.native.cache import BUILDING, cache_folder, is_own, mark_used, prune
from pyro_vae.svi.engines.steps import CannotError

TIMEOUT = 120.0
"""Seconds; such a source takes one to ten."""


def _cannot(reason: str) -> CannotError:
    return CannotError(f"its steps cannot be built: {reason}")


def load(source: str, *names: str) -> Any:
    """The library of a source, which must have functions and variables of these names: from the cache, or
    built now.

    An entry's name holds a digest of all that decides its content (source, flags, compiler, processor) and a
    digest of the content, so an entry that is truncated or changed is seen and built again, and so is one
    that somebody else may write to. A file appears under its name only when it is whole; two processes that
    build at once both succeed. Each build keeps the cache within its bound.

    Raises
    ------
    CannotError
        If there is no C++ compiler, or it fails, or what it has built cannot be kept and loaded, or lacks a
        name.
    """
    key, folder = key_of(source), None
    try:
        folder = cache_folder()
        for entry in folder.glob(f"{key}-*.so"):
            library = _kept(entry, names)
            if library is not None:
                return library
        library = _built(source, key, folder, names)
        prune(folder)
    except OSError as error:
        place = folder or tempfile.gettempdir()
        raise _cannot(f"a build cannot be kept and loaded in {place}: {error}") from error
    return library


def _kept(entry: Path, names: Sequence[str]) -> Any:
    """The library of an entry, or None if there is none any more; a bad one is removed."""
    with suppress(OSError):  # where another process has removed it meanwhile
        if is_own(entry.lstat()) and entry.stem.split("-")[1] == _digest(entry.read_bytes()):
            with suppress(OSError):
                library = ctypes.CDLL(str(entry))
                if all(hasattr(library, name) for name in names):
                    mark_used(entry)
                    return library
        entry.unlink()
    return None


def _built(source: str, key: str, folder: Path, names: Sequence[str]) -> Any:
    with tempfile.TemporaryDirectory(dir=folder, prefix=BUILDING) as building:
        command = [*_compiler(), *_flags()]
        built = _compile(source, command, Path(building))
        library = ctypes.CDLL(str(built))  # while nobody else knows it, and could prune it
        missing = [name for name in names if not hasattr(library, name)]
        if missing:
            raise _cannot(f"what the compiler {command[0]} has made has no {missing[0]!r}")
        built.chmod(0o700)
        built.replace(folder / f"{key}-{_digest(built.read_bytes())}.so")
    return library


def key_of(source: str) -> str:
    """A digest of all that decides what is built, and how fast it is: source, flags, compiler, processor.
    Raises CannotError if there is no C++ compiler."""
    command = [*_compiler(), *_flags()]
    decisive = "\0".join([source, *command, _version(command[0]), _processor()])
    return _digest(decisive.encode(errors="surrogateescape"))


def has_compiler() -> bool:
    """Whether this machine can build at all."""
    try:
        return bool(_compiler())
    except CannotError:
        return False


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        try:
            return shlex.split(chosen)
        except ValueError as error:
            raise _cannot(f"the variable CXX is {chosen!r:.80}, which is no command: {error}") from error
    for name in ("g++", "clang++", "c++"):
        path = shutil.which(name)
        if path:
            return [path]
    raise _cannot("there is no C++ compiler: install g++ or clang++, or name one in the variable CXX")


def _flags() -> list[str]:
    """Never -ffast-math: it lets NaN be ignored, and older gcc then link code that rounds the tiny numbers of
    the whole process to zero."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [
        *("-std=c++17", "-O2", "-shared", "-fPIC"),
        *(("-march=native", "-mprefer-vector-width=512") if x86 else ("-mcpu=native",)),
        *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
        "-fopenmp" if platform.system() == "Linux" else "-fopenmp-simd",
    ]


def _compile(source: str, command: list[str], folder: Path) -> Path:
    written, built = folder / "step.cpp", folder / "step.so"
    written.write_text(source, encoding="utf-8")
    try:
        done = subprocess.run(
            [*command, str(written), "-o", str(built)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _cannot(f"the compiler {command[0]} did not run: {error}") from error
    if done.returncode or not built.exists():
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise _cannot(f"the compiler {command[0]} failed: {errors[0][:200] if errors else done.returncode}")
    return built


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@functools.cache
def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _cannot(f"the compiler {compiler} did not run: {error}") from error
    return done.stdout


@functools.cache
def _processor() -> str:
    """What -march=native looks at: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("flags", "Features", "model name", "cpu family", "model", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split(":")[0].strip() in told}))
