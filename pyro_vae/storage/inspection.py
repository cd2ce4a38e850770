"""Inspect files for the HDF5 library that others may have made, in a process that may hang or crash."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pyro_vae.storage.records import checksum

PROGRAM = Path(__file__).with_name("hdf5_rules.py")

SECONDS = 30.0
"""For a file, beside what reading its bytes takes; a sound one takes a fraction of one."""

BYTES_PER_SECOND = 20e6

_VERDICTS: dict[str, str] = {}
"""By checksum, what is wrong with a file; nothing, if it is sound or of this process's making."""


def trust(content: bytes) -> None:
    """Note bytes that this process has made itself."""
    _VERDICTS[checksum(content)] = ""


def require_harmless(content: bytes, path: Path) -> None:
    """See that the HDF5 library can be given these bytes of a file. Raises ValueError if they are not what
    this package writes (see :mod:`pyro_vae.storage.hdf5_rules`), or reading them does not end, or ends the
    process that does."""
    digest = checksum(content)
    if digest not in _VERDICTS:
        inspect_files([path])
    problem = _VERDICTS.get(digest, "it changes while it is read")
    if problem:
        raise ValueError(f"{path} cannot be read ({problem}); it is damaged or foreign")


def inspect_files(paths: Sequence[Path]) -> None:
    """Inspect many files at once, so that each does not wait for a process of its own; what is found is told
    by :func:`require_harmless`."""
    left = [path for path in paths if path.is_file() and checksum(path.read_bytes()) not in _VERDICTS]
    while left:
        lines, ending = _run(left)
        if not lines:
            raise ValueError(f"{left[0]} cannot be inspected: {ending}")
        _VERDICTS.update(zip(lines[::2], [*lines[1::2], ending], strict=False))
        left = left[(len(lines) + 1) // 2 :]


def _run(paths: Sequence[Path]) -> tuple[list[str], str]:
    """What the inspecting process has written, and how it has ended."""
    bytes_ = sum(path.stat().st_size for path in paths)
    search = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)],
            input=json.dumps([str(path.absolute()) for path in paths]).encode(),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout=SECONDS + bytes_ / BYTES_PER_SECOND,
            check=False,
        )
        written, ending = done.stdout, f"reading it ended with {_named(done.returncode)}"
    except subprocess.TimeoutExpired as error:
        written, ending = error.stdout or b"", "reading it does not come to an end"
    lines = [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith(b"\n")]
    return lines, ending


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
