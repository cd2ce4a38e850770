"""A run that is killed, interrupted, or has no room on its disk goes on to the end of one that was not."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

import pyro_vae
from pyro_vae.run_folder import RunFolder, writing
from pyro_vae.study import (
    Study,
    StudyConfig,
    completion,
    diagnose_again,
    report_again,
    resume_study,
    run_study,
)
from pyro_vae.svi import Fit
from pyro_vae.svi.state.saved import read
from tests.conftest import without_figures
from tests.svi.pairs import PAIRS, observations

pytestmark = pytest.mark.arviz

ROOT = Path(__file__).parent.parent

RUN = """
import sys
from pathlib import Path
from contextlib import nullcontext
from pyro_vae.study import StudyConfig, resume_study, run_study
from tests.conftest import without_figures
from tests.test_interruption import small
data, out, figures = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
print("begun", flush=True)
with nullcontext() if figures else without_figures():
    if (out / "run.json").exists():
        resume_study(out, progress=False, checkpoint_seconds=0)
    else:
        run_study(small(data, fits=int(sys.argv[4])), out=out, progress=False, checkpoint_seconds=0)
print("done", flush=True)
"""


def small(data: Path, *, fits: int = 1) -> StudyConfig:
    return StudyConfig(
        str(data),
        scales=("abs", "softplus"),
        seeds=fits,
        epochs=4 * fits,
        batch_size=10,
        hidden=(4,),
        latent_dim=2,
        draws=100,
        gap_observations=2,
        device="cpu",
    )


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    with without_figures():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "counts.npy"
    np.save(path, np.random.default_rng(0).poisson(3.0, (60, 4)))
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    torch.set_default_dtype(torch.float32)
    with without_figures():
        return run_study(small(data), out=tmp_path_factory.mktemp("whole") / "run", progress=False).folder


def start(data: Path, out: Path, *, figures: bool = False, fits: int = 1) -> subprocess.Popen[str]:
    """A process that begins the study, or goes on with it; returns when it has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(data), str(out), str(figures), str(fits)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n", process.communicate()[1]
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


def assert_same_run(one: Path, other: Path) -> None:
    """Equal bits, but for when a tree was made and how fast a fit was."""

    def files(run: Path) -> set[Path]:
        found = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
        return {name for name in found if name.suffix != ".png"}

    assert files(one) == files(other)
    for name in files(one):
        if name.suffix == ".safetensors":
            tensors, wanted = load_file(one / name), load_file(other / name)
            assert tensors.keys() == wanted.keys()
            assert all(tensors[key].equal(wanted[key]) for key in wanted)
        if name.suffix == ".nc":
            with (
                xr.open_datatree(one / name, engine="h5netcdf") as tree,
                xr.open_datatree(other / name, engine="h5netcdf") as promised,
            ):
                xr.testing.assert_equal(tree, promised)
        if name.suffix == ".csv":
            assert (one / name).read_text() == (other / name).read_text()
    assert Study.load(one).answer == Study.load(other).answer


def kill_often(data: Path, out: Path, kills: int, seconds: float, **options: Any) -> None:
    """Kill a run so often, at random moments of the time that it has; then let it come to its end."""
    chance = random.Random(kills)
    for _ in range(kills):
        if is_done(start(data, out, **options), chance.uniform(0.0, seconds)):
            (out / "report.html").unlink()  # it was quick: let the next one find something to do
    assert is_done(start(data, out, **options), 600)


def test_a_run_that_is_killed_ends_with_the_same_bits(data: Path, whole: Path, tmp_path: Path) -> None:
    kill_often(data, tmp_path / "run", 3, 1.5)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times(data: Path, tmp_path: Path) -> None:
    wanted = run_study(small(data, fits=3), out=tmp_path / "whole", progress=False).folder
    kill_often(data, tmp_path / "run", 20, 4.0, figures=True, fits=3)
    assert_same_run(tmp_path / "run", wanted)


def finished(run: Path) -> dict[str, int]:
    """The fits of a run that are saved, and when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("fits/*/fit.json")}


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def stop_at(write: int, patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the ``write``-th write of a file fail, or of a folder's names, and all that follow."""
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= write:
            raise error
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("write", [3, 40, 130])
def test_finished_fits_are_not_fitted_again(
    write: int, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first fit, in the second, and in the diagnosis."""
    with monkeypatch.context() as patched, pytest.raises(StoppedError):  # noqa: PT012
        stop_at(write, patched, StoppedError())
        run_study(small(data), out=tmp_path / "run", progress=False, checkpoint_seconds=0)
    before = finished(tmp_path / "run")
    resume_study(tmp_path / "run", progress=False)
    assert before.items() <= finished(tmp_path / "run").items()
    assert_same_run(tmp_path / "run", whole)


def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left on device") as raised:  # noqa: PT012
        stop_at(40, patched, full)
        run_study(small(data), out=tmp_path / "run", progress=False, checkpoint_seconds=0)
    assert raised.value.__notes__ == [f"`pyro-vae resume {tmp_path / 'run'}` goes on with it"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    resume_study(tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", whole)


def test_an_earlier_run_survives_a_disk_without_room_for_the_next(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    stop_at(1, monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ValueError, match=r"output folder .* cannot be written .No space left on device"):
        run_study(small(data), out=run, overwrite=True, progress=False)
    assert_same_run(run, whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_ends_in_a_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"cannot be written .Permission denied.; name another"):
        run_study(small(data), out=tmp_path / "run", progress=False)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("write", range(1, 8))
def test_a_save_that_is_stopped_leaves_the_old_fit_or_the_new(
    write: int, earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pair = PAIRS["normal"]()
        x = observations(16)
        fits.append(pyro_vae.fit(pair.model, pair.guide, x, epochs=1, seed=seed, progress=False))
    if earlier:
        fits[0].save(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):  # noqa: PT012
        stop_at(write, patched, StoppedError())
        fits[1].save(tmp_path)
    pair = PAIRS["normal"]()
    try:
        found = Fit.load(tmp_path, pair.model, pair.guide)
    except FileNotFoundError:
        assert not earlier
        return
    expected = fits[found.seed]
    weights = zip(found.guide.parameters(), expected.guide.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert found.history.identical(expected.history)


SAVE = """
import sys, torch
import pyro_vae
from tests.svi.pairs import PAIRS, observations
fits = []
for seed in (0, 1):
    torch.manual_seed(seed)
    pair = PAIRS["normal"]()
    fits.append(pyro_vae.fit(pair.model, pair.guide, observations(16), epochs=1, seed=seed, progress=False))
fits[0].save(sys.argv[1])
print("begun", flush=True)
while True:
    fits[1].save(sys.argv[1])
    fits[0].save(sys.argv[1])
"""


def test_a_process_that_is_killed_while_it_saves(tmp_path: Path) -> None:
    """Over and over two fits take each other's place; whenever it ends, one of them is there, and whole."""
    chance, seeds = random.Random(0), set()
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0.0, 0.3))
            process.kill()
        saved = read(tmp_path)
        seeds.add(saved.record.seed)
    assert seeds <= {0, 1}


class TestCommand:
    def command(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        # Tests in the background have no Ctrl-C, and their processes would inherit that.
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(
            [sys.executable, "-m", "pyro_vae", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def begun(self, out: Path) -> None:
        """Wait until a fit is under way."""
        until = time.monotonic() + 120
        while not list(out.glob("fits/*/state")):
            assert time.monotonic() < until
            time.sleep(0.05)

    def test_ctrl_c_and_a_second_process(self, data: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        words = ["compare", str(data), "--epochs", "1000000", "--out", str(out)]
        first = self.command(*words)
        self.begun(out)
        for other in (["compare", str(data), "--out", str(out)], ["resume", str(out)]):
            second = self.command(*other)
            _, errors = second.communicate(timeout=120)
            assert second.returncode == 1
            assert f"{out}: another process (process {first.pid}) is writing there" in errors
            assert "Traceback" not in errors
        first.send_signal(signal.SIGINT)
        output, errors = first.communicate(timeout=60)
        assert first.returncode == 130
        assert output == ""
        assert errors.splitlines()[-1] == f"pyro-vae: interrupted; `pyro-vae resume {out}` goes on with it"
        assert "Traceback" not in errors

    def test_files_that_may_not_grow(self, data: Path, tmp_path: Path) -> None:
        """As on a full disk: the kernel refuses the write itself."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

        out = tmp_path / "run"
        words = ["compare", str(data), "--epochs", "2", "--seeds", "1", "--draws", "100", "--out", str(out)]
        process = self.command(*words, preexec_fn=limit)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert errors.splitlines()[-1].startswith(f"pyro-vae: {out}")
        assert f"File too large; `pyro-vae resume {out}` goes on with it" in errors
        assert "Traceback" not in errors

    def test_resume_tells_the_result(self, whole: Path) -> None:
        output, errors = self.command("resume", str(whole)).communicate(timeout=120)
        assert "nats per observation" in output, errors
        assert f"{whole}" in output.splitlines()[-1]


@pytest.mark.parametrize(
    "act",
    [
        lambda study: diagnose_again(study, draws=200, progress=False),
        report_again,
        lambda study: resume_study(study.folder, progress=False),
        lambda study: run_study(study.config, out=study.folder, progress=False),
    ],
    ids=["diagnose", "report", "resume", "run"],
)
def test_one_writer_at_a_time(act: Callable[[Study], Any], whole: Path) -> None:
    study = Study.load(whole)
    with (
        writing(RunFolder(whole)),
        pytest.raises(BlockingIOError, match=r"another process .* is writing there; wait for it"),
    ):
        act(study)
    assert Study.load(whole).answer == study.answer


def test_a_run_whose_data_have_changed_is_not_gone_on_with(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "units.nc").unlink()
    changed = pyro_vae.data.load(str(data))
    changed.x[0, 0] += 1
    monkeypatch.setattr("pyro_vae.study.material.load", lambda *_, **__: changed)
    with pytest.raises(ValueError, match=r"the data .*counts.npy' are not those that the run in .* was made"):
        resume_study(run, progress=False)
    with pytest.raises(ValueError, match=r"the data .*counts.npy' are not those that the run in .* was made"):
        diagnose_again(Study.load(whole), draws=200, progress=False)


def test_a_diagnosis_that_is_stopped_is_gone_on_with(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it new and half of it old would be the worst."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    study = Study.load(run)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):  # noqa: PT012
        patched.setattr(completion, "write_findings", lambda *_: stop())
        diagnose_again(study, draws=200, progress=False)
    with pytest.raises(ValueError, match=r"is 'diagnosing' and not done; `pyro-vae resume .*` goes on"):
        Study.load(run)
    again = resume_study(run, progress=False)
    assert again.config.draws == again.diagnostics.attrs["draws"] == 200


def stop() -> None:
    raise StoppedError
