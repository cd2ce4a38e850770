"""Is anything slower than it was? This checkout against another one, by processor seconds.

    git worktree add /tmp/before 945aaf4
    python benchmarks/before_after.py /tmp/before             # about ten minutes on one core

A step of each engine on two sizes, the first step of a process, and a sweep. Every variant runs in processes
of its own, one for each checkout; rounds alternate between the two, and the median of their ratios is told.
Steps are timed in three pairs of processes: from process to process they differ by two percent.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from step_time import one_round
from steps_compared import BATCH, STEPS, our_pair, torch_data

SIZES = ((64, 64, 8), (784, 400, 20))
ENGINES = ("eager", "captured", "native")
EPOCHS = {"eager": 1, "captured": 4, "native": 40}
"""Of a round, so that it takes a tenth of a second or more on the smaller pair."""
STARTS = 3


def fit(sizes: tuple[int, ...], **options: Any) -> None:
    import pyro_vae

    pyro_vae.fit(*our_pair(*sizes), torch_data(sizes[0]), batch_size=BATCH, progress=False, **options)


def run_steps(engine: str, sizes: tuple[int, ...]) -> None:
    """For every line that the parent sends, milliseconds of the processor per step."""
    clock: list[float] = []

    def at_the_end_of_an_epoch(record: Any) -> None:
        if record.epoch < 2 or record.epoch % EPOCHS[engine]:
            return
        if clock:
            print((time.process_time() - clock.pop()) / STEPS / EPOCHS[engine] * 1e3, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        clock.append(time.process_time())

    fit(sizes, epochs=10**6, engine=engine, callbacks=[at_the_end_of_an_epoch])


def run_start(engine: str, sizes: tuple[int, ...]) -> None:
    """Seconds of the processor until a process has taken its first step."""
    fit(sizes, steps=1, engine=engine)
    print(time.process_time(), flush=True)


def run_sweep(_: str, sizes: tuple[int, ...]) -> None:
    """Seconds of the processor of a sweep over four seeds."""
    import pyro_vae

    pyro_vae.sweep(lambda: our_pair(*sizes), range(4), torch_data(sizes[0]), epochs=20, progress=False)
    print(time.process_time(), flush=True)


RUNS: dict[str, tuple[Callable[[str, tuple[int, ...]], None], str]] = {
    **{engine: (run_steps, engine) for engine in ENGINES},
    "first step": (run_start, "captured"),
    "sweep": (run_sweep, ""),
}


class Checkout:
    """One of the two, with a cache of native builds of its own."""

    def __init__(self, folder: Path, cache: str) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "XDG_CACHE_HOME": cache,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, sizes: tuple[int, ...]) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, "--worker", name, *map(str, sizes)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
        )


def rounds(checkouts: tuple[Checkout, Checkout], name: str, sizes: tuple[int, ...], count: int) -> list[Any]:
    """Times of both in each round, the old one's first."""
    if RUNS[name][0] is not run_steps:
        once = [[one_round(c.start(name, sizes)) for c in checkouts] for _ in range(count + 1)]
        return once[1:]  # the first may build kernels
    found = []
    for _ in range(STARTS):
        workers = [checkout.start(name, sizes) for checkout in checkouts]
        found += [[one_round(worker) for worker in workers] for _ in range(count // STARTS + 1)][1:]
        for worker in workers:
            worker.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run, engine = RUNS[options.worker[0]]
        run(engine, tuple(map(int, options.worker[1:])))
        return
    here = Path(__file__).parents[1]
    print(f"{'':12}{'sizes':>12}{'before':>10}{'now':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as one_cache, tempfile.TemporaryDirectory() as other:
        checkouts = Checkout(options.before, one_cache), Checkout(here, other)
        for name in options.only:
            for sizes in SIZES if RUNS[name][0] is run_steps else SIZES[:1]:
                times = rounds(checkouts, name, sizes, options.rounds)
                before, now = (statistics.median(column) for column in zip(*times, strict=True))
                ratio = statistics.median(new / old for old, new in times)
                told = f"{name:12}{'-'.join(map(str, sizes)):>12}{before:10.3f}{now:10.3f}{ratio:8.3f}"
                print(told, flush=True)


if __name__ == "__main__":
    main()
