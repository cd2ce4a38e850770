"""Processes that begin at once, because they are forked from one that has imported what a fit and a run need:
for tests of signals, files and exit codes. How an interpreter starts and ends is tested with real ones."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

PRELOADED = [
    *("pyro_vae.study", "pyro_vae.cli.output", "tests.svi.parallel.test_ranks", "tests.test_interruption"),
    *("torch._dynamo", "torch._inductor", "torch.onnx"),  # what a fit imports when it needs it,
    *("distributed", "dask.array", "h5netcdf.legacyapi"),  # and what xarray does
]


def forkserver() -> ForkServerContext:
    """The one process of this worker that has imported everything; it starts with the first child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Forked:
    """A function in a process of its own; what it writes is kept in files."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.process = forkserver().Process(
            target=_begin, args=(self.folder, dict(os.environ), function, args), daemon=True
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def has_ended(self, within: float) -> bool:
        self.process.join(within)
        return self.process.exitcode is not None

    def end(self, within: float = 120.0) -> tuple[int | None, str, str]:
        """Wait; exit code, standard output and standard error. Who takes longer is killed."""
        if not self.has_ended(within):
            self.process.kill()
            self.process.join()
        output, errors = (
            path.read_text() if (path := self.folder / name).exists() else "" for name in ("1", "2")
        )
        shutil.rmtree(self.folder)
        return self.process.exitcode, output, errors


def command(*words: str, first: Callable[[], None] | None = None, encoding: str = "utf-8") -> Forked:
    """The ``pyro-vae`` command with these words, on a terminal of this encoding; ``first``, a function of a
    module, comes before it."""
    return Forked(_command, words, first, encoding)


def _command(words: tuple[str, ...], first: Callable[[], None] | None, encoding: str) -> None:
    from pyro_vae.cli import main

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    if first:
        first()
    sys.argv = ["pyro-vae", *words]
    main()


def _begin(folder: Path, environment: dict[str, str], function: Callable[..., Any], args: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have no Ctrl-C
    os.environ.clear()
    os.environ |= environment
    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    torch.set_num_threads(1)
    function(*args)
