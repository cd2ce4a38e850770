"""A run that is killed, interrupted, or has no room on its disk ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
from safetensors.torch import load_file

from pyro_vae.study import Study, StudyConfig

pytestmark = pytest.mark.arviz

CONFIG = StudyConfig(
    scales=("logvar", "softplus"),
    seeds=2,
    epochs=6,
    hidden=(16,),
    latent_dim=2,
    draws=100,
    gap_observations=2,
    device="cpu",
)

RUN = """
import sys
from pathlib import Path
import torch
from pyro_vae.study import StudyConfig, resume_study, run_study
from tests.test_interruption import CONFIG
out = Path(sys.argv[1])
print("begun", flush=True)
if (out / "run.json").exists():
    resume_study(out, progress=False, checkpoint_seconds=0)
else:
    run_study(CONFIG, out=out, progress=False, checkpoint_seconds=0)
print("done", flush=True)
"""


def start(out: Path) -> subprocess.Popen[str]:
    """A process that begins the study, or goes on with it; returns when it has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def is_done(process: subprocess.Popen[str], within: float) -> bool:
    """Whether a process came to its end by itself; if not within some seconds it is killed."""
    try:
        output, errors = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors
    return output == "done\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that nobody interrupts, and how long it takes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(out)
    began = time.monotonic()
    assert is_done(process, 600)
    return out, time.monotonic() - began


def assert_same_run(one: Path, other: Path) -> None:
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    for name in files:
        if name.suffix == ".safetensors":
            a, b = load_file(one / name), load_file(other / name)
            assert all(a[key].equal(b[key]) for key in a.keys() | b.keys())
        if name.suffix == ".nc":
            with (
                xr.open_datatree(one / name, engine="h5netcdf") as a,
                xr.open_datatree(other / name, engine="h5netcdf") as b,
            ):
                xr.testing.assert_identical(a, b)
        if name.suffix == ".csv":
            assert (one / name).read_text() == (other / name).read_text()
    assert Study.load(one).answer == Study.load(other).answer


def kill_often(out: Path, seconds: float, kills: int, seed: int) -> None:
    """Kill so often, at moments that are spread over the whole run; then let it end."""
    moments = random.Random(seed)
    for _ in range(kills):
        if is_done(start(out), moments.uniform(0.0, seconds)):
            return
    while not is_done(start(out), 600):
        pass


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_with_the_same_bits(
    kills: int, whole: tuple[Path, float], tmp_path: Path
) -> None:
    out, seconds = tmp_path / "run", whole[1]
    kill_often(out, seconds, kills, seed=kills)
    assert_same_run(out, whole[0])
