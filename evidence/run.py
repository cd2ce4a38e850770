"""Runs the experiments in order, each within its time, and writes tables, figures and the page's tables.

python -m evidence.run                       # under 40 minutes on two cores, into evidence/
python -m evidence.run --quick               # 3 minutes, into runs/evidence/
python -m evidence.run --mnist FOLDER        # with MNIST's IDX files
python -m evidence.run --only truth precision
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from evidence import tables
from evidence.experiment import Effort, Experiment, Job, Row
from evidence.experiments import (
    constraints,
    equivalence,
    guides,
    mechanism,
    precision,
    published,
    real_data,
    robustness,
    truth,
)

__all__ = ["EXPERIMENTS", "main"]

EXPERIMENTS: dict[str, Experiment] = {
    "equivalence": equivalence,
    "truth": truth,
    "robustness": robustness,
    "precision": precision,
    "constraints": constraints,
    "real_data": real_data,
    "mechanism": mechanism,
    "published": published,
    "guides": guides,
}
HERE = Path(__file__).parent
WORKERS = 2
"""Processes, of one thread each."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything small, into runs/evidence/")
    parser.add_argument(
        "--mnist", type=Path, help="folder with MNIST's IDX files; without it that part is left out"
    )
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder for results/ and figures/")
    parser.add_argument("--times", type=float, default=1.0, help="that much more time, on a busy machine")
    options = parser.parse_args(arguments)
    effort = Effort("quick" if options.quick else "full", options.mnist)
    out = options.out or (Path("runs/evidence") if options.quick else HERE)
    if effort.mnist is None:
        print("MNIST is left out of experiments 6 and 8: give its IDX files, make evidence MNIST=FOLDER")
    with processes() as executor:
        for name in options.only:
            run_experiment(name, effort, out, options.times, executor)
    if out == HERE and set(tables.read_results()) >= set(EXPERIMENTS):
        tables.write_page()
        print(f"the tables of {tables.PAGE.name} are those of these results")


def run_experiment(name: str, effort: Effort, out: Path, times: float, executor: Executor) -> None:
    """One experiment: its rows into results/, its figure into figures/, and a line about it."""
    experiment = EXPERIMENTS[name]
    started, jobs = time.time(), experiment.jobs(effort)
    done = run_jobs(jobs, times * seconds_for(experiment, effort), executor)
    rows = [row for part in done for row in part.rows]
    if not rows:
        print(f"{name:12} left out")
        return
    for folder in ("results", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "results" / f"{name}.csv", index=False, float_format="%.6g")
    figure = experiment.draw(tables.read_results(out / "results"))
    figure.savefig(out / "figures" / f"{name}.png", dpi=110, metadata={"Software": None})
    about = {
        "effort": effort.name,
        "seconds": round(time.time() - started),
        "seconds_of_one_core": round(sum(part.seconds for part in done)),
        "jobs": len(jobs),
        "jobs_left_out": len(jobs) - len(done),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    note_run(out / "results" / "runs.json", name, about)
    cut = f", {len(jobs) - len(done)} of {len(jobs)} jobs left out for lack of time"
    print(
        f"{name:12} {about['seconds']:6} s, {len(table)} rows{cut if len(jobs) > len(done) else ''}",
        flush=True,
    )


def seconds_for(experiment: Experiment, effort: Effort) -> float:
    """How long an experiment may begin jobs; the quick form has three minutes for all."""
    return max(12.0, experiment.SECONDS / 16) if effort.name == "quick" else experiment.SECONDS


class Done(NamedTuple):
    """What a job has given."""

    rows: Sequence[Row]
    seconds: float
    """Of the processor, which other work on the machine does not count into."""


@contextmanager
def processes() -> Iterator[Executor]:
    """Processes of one thread each, that have imported torch: no experiment waits for that."""
    with ProcessPoolExecutor(
        WORKERS, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as executor:
        list(executor.map(time.sleep, [1.0] * WORKERS))
        yield executor


def run_jobs(jobs: Sequence[Job], seconds: float, executor: Executor) -> list[Done]:
    """The jobs that had time to begin."""
    parts = executor.map(run_before, repeat(time.time() + seconds), jobs)
    return [part for part in parts if part is not None]


def run_before(deadline: float, job: Job) -> Done | None:
    """A job, or None if it is too late to begin."""
    if time.time() > deadline:
        return None
    started = time.process_time()
    return Done(job(), time.process_time() - started)


def note_run(path: Path, name: str, about: Row) -> None:
    """When and where a table was made, beside what is known of the others."""
    runs: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted({**runs, name: about}.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
