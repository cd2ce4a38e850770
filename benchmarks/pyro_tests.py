"""Pyro's own tests, once with Pyro's SVI and once with ours in its place: which pass with which?

    git clone --branch dev https://github.com/pyro-ppl/pyro
    python benchmarks/pyro_tests.py pyro                      # hours on one core
    python benchmarks/pyro_tests.py pyro test_gradient.py --seconds 30
    python benchmarks/pyro_tests.py pyro test_enum.py --select svi     # some of them, as pytest's -k does

The tests are those of a checkout of Pyro, run against the Pyro that is installed. Ours is run twice: as it
is, where the first step of a signature is Pyro's and the second is captured, and with every first step
captured, since most of Pyro's tests take one step. A test that takes longer than ``--seconds`` of CPU time
is counted as too long. What was found is kept in ``--out``, one file for each file of tests and kind of SVI,
and is not run again.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

FILES = (
    "infer/test_gradient.py",
    "infer/test_valid_models.py",
    "infer/test_enum.py",
    "infer/test_inference.py",
    "infer/test_autoguide.py",
    "infer/test_predictive.py",
    "optim/test_optim.py",
    "nn/test_module.py",
    "poutine/test_poutines.py",
    "integration_tests/test_conjugate_gaussian_models.py",
    "integration_tests/test_tracegraph_elbo.py",
)
KINDS = ("pyro", "ours", "at once")


class TooLongError(Exception):
    """A test used up its CPU time."""


class Recorder:
    """What became of each test, and in which of them a step was captured."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.outcomes: dict[str, str] = {}
        self.captured: set[str] = set()
        self.running = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running = nodeid

    def pytest_runtest_call(self, item: Any) -> Any:
        run = item.runtest

        def limited() -> None:
            signal.setitimer(signal.ITIMER_PROF, self.seconds)
            try:
                run()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)

        item.runtest = limited

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            too_long = TooLongError.__name__ in str(report.longrepr)
            self.outcomes[report.nodeid] = "too long" if too_long else report.outcome


def run_here(file: str, kind: str, seconds: float, select: str, out: Path) -> None:
    """Run one file of tests in this process, and write what became of them."""
    import pyro.infer
    import pyro.infer.svi
    import pytest

    def stop(*_: Any) -> None:
        raise TooLongError(f"more than {seconds:g} CPU seconds")

    signal.signal(signal.SIGPROF, stop)
    recorder = Recorder(seconds)
    if kind != "pyro":
        import pyro_vae
        from pyro_vae.svi.pyro_svi import capturing

        class SVI(pyro_vae.SVI):
            def step(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().step(*args, **kwargs)
                if self.engine == "captured":
                    recorder.captured.add(recorder.running)
                return loss

        pyro.infer.SVI = pyro.infer.svi.SVI = SVI  # type: ignore[misc]
        if kind == "at once":
            capturing.FIRST_SIGHTS = 1
    chosen = ["-k", select] if select else []
    pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", *chosen, file], plugins=[recorder])
    out.write_text(json.dumps({"outcomes": recorder.outcomes, "captured": sorted(recorder.captured)}))


def run(checkout: Path, file: str, kind: str, seconds: float, select: str, out: Path) -> dict[str, Any]:
    """What became of the tests of one file; a process of its own, beside no other Pyro than the installed."""
    found = out / f"{Path(file).stem}-{kind.replace(' ', '-')}.json"
    if not found.exists():
        root = str(Path(__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as place:
            shutil.copytree(checkout / "tests", Path(place, "tests"))
            shutil.copy(checkout / "setup.cfg", place)
            command = [sys.executable, __file__, place, f"tests/{file}", "--seconds", str(seconds)]
            with found.with_suffix(".log").open("w") as log:
                command += ["--select", select, "--here", kind, "--out", str(found.resolve())]
                subprocess.run(command, env=environment, cwd=place, stdout=log, stderr=log, check=False)
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def cell(result: dict[str, Any]) -> str:
    """Counts by outcome."""
    counts = Counter(result["outcomes"].values())
    outcomes = ("passed", "failed", "skipped", "too long")
    return ", ".join(f"{counts[name]} {name}" for name in outcomes if counts[name])


def main() -> None:
    """Print the table, and every test whose outcome is another one with ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="a checkout of Pyro")
    parser.add_argument("files", nargs="*", help="of its tests, by the end of their path")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time for one test")
    parser.add_argument("--select", default="", help="which tests, as pytest's -k takes it")
    parser.add_argument("--out", type=Path, default=Path("runs/pyro_tests"))
    parser.add_argument("--here", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        run_here(given.files[0], given.here, given.seconds, given.select, given.out)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    print("| tests of Pyro | Pyro's SVI | ours | ours, first steps captured | with a captured step |")
    print("|---|---|---|---|---|", flush=True)
    differences = []
    for file in [f for f in FILES if not given.files or any(map(f.endswith, given.files))]:
        results = {}
        for kind in KINDS:
            with contextlib.suppress(OSError):
                results[kind] = run(given.checkout, file, kind, given.seconds, given.select, given.out)
        cells = " | ".join(cell(results[kind]) if kind in results else "–" for kind in KINDS)
        captured = {test for result in results.values() for test in result["captured"]}
        print(f"| {file} | {cells} | {len(captured)} |", flush=True)
        for kind in KINDS[1:]:
            if kind in results and "pyro" in results:
                theirs, mine = results["pyro"]["outcomes"], results[kind]["outcomes"]
                changed = [test for test in theirs if theirs[test] != mine.get(test)]
                differences += [f"{test}: {theirs[test]}, {kind} {mine.get(test)}" for test in changed]
    print("\n".join(["", *(differences or ["No test has another outcome with ours."])]))


if __name__ == "__main__":
    main()
