"""The benchmark scripts start; what they measure is no test."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Forked

FILES = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))
BENCHMARKS = [path for path in FILES if "__main__" in path.read_text()]
WORKERS = [
    ("start_time.py", "Pyro SVI, Trace_ELBO"),
    ("start_time.py", "hand-written, eager"),
    ("start_time.py", "pyro-vae, captured"),
    ("sweep_time.py", "sweep"),
]


def as_a_program(path: Path, *arguments: str) -> None:
    """What ``python path arguments`` does once it has started."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def printed(path: Path, *arguments: str) -> str:
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_each_says_what_it_answers(path: Path) -> None:
    code, said, errors = Forked(as_a_program, path, "--help").end()
    assert code == 0, errors
    assert f"python benchmarks/{path.name}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), WORKERS)
def test_a_worker_prints_its_seconds(name: str, variant: str) -> None:
    path = BENCHMARKS[0].with_name(name)
    short = ["--epochs", "1"] if name == "sweep_time.py" else []
    assert float(printed(path, *short, "--worker", variant)) > 0
