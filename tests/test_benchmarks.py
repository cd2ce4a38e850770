"""The benchmark scripts start; what they measure is no test."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))
WORKERS = [
    ("start_time.py", "Pyro SVI, Trace_ELBO"),
    ("start_time.py", "hand-written, eager"),
    ("start_time.py", "pyro-vae, captured"),
    ("sweep_time.py", "sweep"),
]


def printed(path: Path, *arguments: str) -> str:
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_each_says_what_it_answers(path: Path) -> None:
    said = printed(path, "--help")
    assert f"python benchmarks/{path.name}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), WORKERS)
def test_a_worker_prints_its_seconds(name: str, variant: str) -> None:
    path = BENCHMARKS[0].with_name(name)
    short = ["--epochs", "1"] if name == "sweep_time.py" else []
    assert float(printed(path, *short, "--worker", variant)) > 0
