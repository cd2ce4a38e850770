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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch

from evidence import tables
from evidence.experiment import Effort, Experiment, Job, Row
from evidence.experiments import (
    constraints,
    equivalence,
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
}
HERE = Path(__file__).parent
WORKERS = 2
"""Processes, of one thread each."""


def seconds_for(experiment: Experiment, effort: Effort) -> float:
    """How long an experiment may begin jobs; the quick form has three minutes for all."""
    return max(12.0, experiment.SECONDS / 16) if effort.name == "quick" else experiment.SECONDS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything small, into runs/evidence/")
    parser.add_argument(
        "--mnist", type=Path, help="folder with MNIST's IDX files; without it that part is left out"
    )
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder for results/ and figures/")
    options = parser.parse_args(arguments)
    effort = Effort("quick" if options.quick else "full", options.mnist)
    out = options.out or (Path("runs/evidence") if options.quick else HERE)
    if effort.mnist is None:
        print("MNIST is left out of experiments 6 and 8: give its IDX files, make evidence MNIST=FOLDER")
    run_jobs([no_rows] * WORKERS, 60.0)  # so that no experiment waits for processes to import torch
    for name in options.only:
        run_experiment(name, effort, out)
    if out == HERE:
        tables.write_page()
        print(f"the tables of {tables.PAGE.name} are those of these results")


def run_experiment(name: str, effort: Effort, out: Path) -> None:
    """One experiment: its rows into results/, its figure into figures/, and a line about it."""
    experiment = EXPERIMENTS[name]
    started = time.time()
    jobs = experiment.jobs(effort)
    rows, left_out = run_jobs(jobs, seconds_for(experiment, effort))
    if not rows:
        print(f"{name:12} left out")
        return
    seconds = time.time() - started
    for folder in ("results", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "results" / f"{name}.csv", index=False, float_format="%.6g")
    figure = experiment.draw(tables.read_results(out / "results"))
    figure.savefig(out / "figures" / f"{name}.png", dpi=110, metadata={"Software": None})
    note_run(out / "results" / "runs.json", name, effort, seconds, len(jobs), left_out)
    cut = f", {left_out} of {len(jobs)} jobs left out for lack of time" if left_out else ""
    print(f"{name:12} {seconds:6.0f} s, {len(table)} rows{cut}", flush=True)


def no_rows() -> list[Row]:
    """A job that does nothing."""
    return []


def run_jobs(jobs: Sequence[Job], seconds: float) -> tuple[list[Row], int]:
    """The rows of all jobs, in two processes of one thread each, and how many jobs had no time to begin."""
    deadline = time.time() + seconds
    parallel: Any = joblib.Parallel(n_jobs=WORKERS, batch_size=1)
    parts = parallel(joblib.delayed(run_before)(deadline, job) for job in jobs)
    return [row for part in parts if part is not None for row in part], sum(part is None for part in parts)


def run_before(deadline: float, job: Job) -> Sequence[Row] | None:
    """A job's rows, or None if it is too late to begin."""
    if time.time() > deadline:
        return None
    torch.set_num_threads(1)
    return job()


def note_run(path: Path, name: str, effort: Effort, seconds: float, jobs: int, left_out: int) -> None:
    """When and where a table was made."""
    runs: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    runs[name] = {
        "effort": effort.name,
        "seconds": round(seconds),
        "jobs": jobs,
        "jobs_left_out": left_out,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    path.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
