"""Twenty faults, seeded one at a time into a copy of the package: does the suite catch each?

``python -m tests.mutations`` runs the tests that are named beside a fault up to the first that fails, and
ends with exit code 1 if a fault was missed. A fault is found by its text, wherever the file lies by now;
``--root`` names another checkout, so that two states of the suite can be compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """One change of one line, and the tests that should see it."""

    name: str
    right: str
    wrong: str
    tests: str
    """Name of a test file."""
    only: str = ""
    """As pytest's ``-k``."""
    within: str = ""
    """Part of the path of the file that is meant, where the text stands in several."""


FAULTS = (
    Fault(
        "a sign: log σ in the density",
        "- at_least_float32(self.log_scale) - _HALF",
        "+ at_least_float32(self.log_scale) - _HALF",
        "test_normal",
    ),
    Fault(
        "a term: KL without its logarithm",
        "twice.expm1() - twice + shift",
        "twice.expm1() + shift",
        "test_normal",
    ),
    Fault(
        "a missing determinant",
        "sum(-1) - self.log_scale.sum(-1) - constant",
        "sum(-1) - constant",
        "test_multivariate",
    ),
    Fault(
        "a missing Jacobian",
        "log_density = -sum_rightmost(jacobian,",
        "log_density = 0 * sum_rightmost(jacobian,",
        "test_pushforward",
    ),
    Fault("a slope twice too large", "return 0.5 * raw", "return 1.0 * raw", "test_scales"),
    Fault("a clip without the norm", "max_norm / norm", "max_norm", "test_fitting", within="updates.py"),
    Fault("a bound without its 1/K", " - math.log(self.num_particles)) / order", ") / order", "test_renyi"),
    Fault(
        "an order with the wrong sign", "order = 1.0 - self.alpha", "order = 1.0 + self.alpha", "test_renyi"
    ),
    Fault(
        "a dropped row",
        "self._ahead[batches * self.batch_size :]",
        "self._ahead[batches * self.batch_size + 1 :]",
        "test_batches",
    ),
    Fault(
        "every epoch in one order", "SeedSequence([seed, epoch])", "SeedSequence([seed, 0])", "test_batches"
    ),
    Fault(
        "a stale snapshot",
        "restore_tensors(tensors, self.snapshot)",
        "tensors.update(self.snapshot)",
        "test_fitting",
    ),
    Fault(
        "early stopping the wrong way",
        "if validation < self.best:",
        "if validation > self.best:",
        "test_fitting",
    ),
    Fault(
        "draws that ignore their weights",
        "finite = np.nan_to_num(np.exp(row[order]))",
        "finite = np.ones_like(row)",
        "test_ladder",
        "narrow or wide",
    ),
    Fault(
        "coverage counted outside",
        "np.abs(2 * pit - 1) <= level",
        "np.abs(2 * pit - 1) >= level",
        "test_calibration",
    ),
    Fault(
        "a gap the wrong way round",
        "np.where(converged, local - elbo, np.nan)",
        "np.where(converged, elbo - local, np.nan)",
        "test_gaps",
    ),
    Fault(
        "held-out rows that were trained on",
        "return part(order[n_held_out:])",
        "return part(order)",
        "test_data",
    ),
    Fault(
        "an interval per observation",
        "np.sqrt(n) * values[name].std(ddof=1)",
        "values[name].std(ddof=1)",
        "test_comparison",
    ),
    Fault(
        "a mask that is not read",
        'scale_and_mask(exact_log_prob(site["fn"], site["value"]), mask=site["mask"])',
        'exact_log_prob(site["fn"], site["value"])',
        "test_preparation",
        within="drawing.py",
    ),
    Fault(
        "a native formula",
        '"aten.exp.default": "math::exp({self})"',
        '"aten.exp.default": "math::expm1({self})"',
        "test_many_steps",
    ),
    Fault(
        "a gradient that is cut off",
        "bound: Tensor = (torch.logsumexp(order * log_weights, 0)",
        "bound: Tensor = (torch.logsumexp(order * log_weights.detach(), 0)",
        "test_renyi",
    ),
)


def place_of(fault: Fault, package: Path) -> Path | None:
    """The file that holds the text of a fault, or None."""
    found = [
        path
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".hpp")
        and fault.within in str(path)
        and fault.right in path.read_text(encoding="utf-8")
    ]
    return found[0] if found else None


def first_failure(copy: Path, arguments: list[str]) -> str | None:
    """The test that fails first, or None."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else None


def verdict(fault: Fault, root: Path) -> str:
    """What the tests of ``root`` say to a copy of its package with this fault. A test that fails without the
    fault too has not seen it, and is left out."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("pyro_vae", "tests", "setup.cfg"):
            part = root / name
            (shutil.copytree if part.is_dir() else shutil.copy)(part, copy / name)
        place = place_of(fault, copy / "pyro_vae")
        files = sorted(str(path) for path in (copy / "tests").rglob(f"{fault.tests}.py"))
        if place is None or not files:
            return "absent"
        right = place.read_text(encoding="utf-8")
        arguments = [*files, *(["-k", fault.only] if fault.only else [])]
        started = time.perf_counter()
        while True:
            place.write_text(right.replace(fault.right, fault.wrong), encoding="utf-8")
            failed = first_failure(copy, arguments)
            place.write_text(right, encoding="utf-8")
            if failed is None or first_failure(copy, [failed]) is None:
                break
            arguments += ["--deselect", failed]
        said = "MISSED" if failed is None else f"caught by {failed}"
        return f"{said} ({time.perf_counter() - started:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--only", default="", help="part of the name of a fault")
    options = parser.parse_args()
    verdicts = []
    for fault in FAULTS:
        if options.only in fault.name:
            verdicts.append(verdict(fault, options.root))
            print(f"{fault.name:36} {verdicts[-1]}", flush=True)
    return int(any(said.startswith("MISSED") for said in verdicts))


if __name__ == "__main__":
    sys.exit(main())
