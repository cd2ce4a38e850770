"""A run that is killed, interrupted, or has no room on its disk goes on to the end of one that was not."""

import dataclasses
import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
from tests.conftest import briefly
from tests.processes import Forked, command
from tests.svi.pairs import PAIRS, observations

OWN_SEEDS = True


@pytest.fixture
def data(small_study: Study) -> Path:
    return small_study.folder.parent / "counts.npy"


@pytest.fixture
def whole(small_study: Study) -> Path:
    """The run that nobody interrupts."""
    return small_study.folder


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    with briefly():
        yield


def contents(run: Path) -> dict[Path, bytes]:
    files = {path for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    return {path.relative_to(run): path.read_bytes() for path in files}


def carry_out(config: StudyConfig, out: Path, figures: bool) -> None:
    """Begin the study, or go on with it."""
    with nullcontext() if figures else briefly():
        if (out / "run.json").exists():
            resume_study(out, progress=False, checkpoint_seconds=0)
        else:
            run_study(config, out=out, progress=False, checkpoint_seconds=0)


def assert_same_run(one: Path, other: Path) -> None:
    """Equal bits, but for when a tree was made and how fast a fit was."""

    def files(run: Path) -> set[Path]:
        found = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
        return {name for name in found if name.suffix != ".png"}

    assert files(one) == files(other)
    for name in files(one):
        if (one / name).read_bytes() == (other / name).read_bytes():
            continue
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
    assert Study.load(one).answer == RunFolder(other).read_record()["result"]["answer"]


def kill_often(config: StudyConfig, out: Path, kills: int, seconds: float, *, figures: bool = False) -> None:
    """Kill a run so often, at random moments of the time that it has; then let it come to its end."""
    chance = random.Random(kills)
    for _ in range(kills):
        process = Forked(carry_out, config, out, figures)
        if process.has_ended(chance.uniform(0.0, seconds)):
            (out / "report.html").unlink()  # it was quick: let the next one find something to do
            assert process.end() == (0, "", "")
        else:
            assert process.end(0.0)[0] == -signal.SIGKILL
    code, _, errors = Forked(carry_out, config, out, figures).end(600)
    assert code == 0, errors


def test_a_run_that_is_killed_ends_with_the_same_bits(small_study: Study, tmp_path: Path) -> None:
    kill_often(small_study.config, tmp_path / "run", 3, 1.5)
    assert_same_run(tmp_path / "run", small_study.folder)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times(small_study: Study, tmp_path: Path) -> None:
    config = dataclasses.replace(small_study.config, seeds=3, epochs=12)
    code, _, errors = Forked(carry_out, config, tmp_path / "whole", True).end(600)
    assert code == 0, errors
    kill_often(config, tmp_path / "run", 20, 4.0, figures=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


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


def test_a_run_that_is_stopped_again_and_again(
    small_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first fit, in the second, where the disk is full, and in the diagnosis: it ends with the same
    bits, and what is finished is not fitted again."""
    run, full = tmp_path / "run", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before: dict[str, int] = {}
    for fits, (write, error) in enumerate(((12, StoppedError()), (40, full), (60, StoppedError()))):
        with monkeypatch.context() as patched, pytest.raises(type(error)) as raised:  # noqa: PT012
            stop_at(write, patched, error)
            run_study(small_study.config, out=run, progress=False, checkpoint_seconds=0)
        assert before.items() <= finished(run).items()
        before = finished(run)
        assert len(before) == fits
        assert not list(run.rglob("*.tmp"))
        if error is full:
            assert "No space left on device" in str(raised.value)
            assert raised.value.__notes__ == [f"`pyro-vae resume {run}` goes on with it"]
    assert (run / "compare.csv").exists()
    resume_study(run, progress=False)
    assert before == finished(run)
    assert_same_run(run, small_study.folder)


def test_an_earlier_run_survives_a_disk_without_room_for_the_next(
    small_study: Study, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    stop_at(1, monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ValueError, match=r"output folder .* cannot be written .No space left on device"):
        run_study(small_study.config, out=run, overwrite=True, progress=False)
    assert contents(run) == contents(whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_ends_in_a_sentence(small_study: Study, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"cannot be written .Permission denied.; name another"):
        run_study(small_study.config, out=tmp_path / "run", progress=False)


def two_fits() -> list[Fit]:
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pair = PAIRS["normal"]()
        x = observations(16)
        made.append(pyro_vae.fit(pair.model, pair.guide, x, epochs=1, seed=seed, progress=False))
    return made


@pytest.fixture(scope="module")
def fits() -> list[Fit]:
    torch.set_default_dtype(torch.float32)
    return two_fits()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("write", range(1, 8))
def test_a_save_that_is_stopped_leaves_the_old_fit_or_the_new(
    write: int, earlier: bool, fits: list[Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def save_for_ever(folder: Path) -> None:
    fits = two_fits()
    while True:
        for fit in fits:
            fit.save(folder)


def test_a_process_that_is_killed_while_it_saves(tmp_path: Path) -> None:
    """Over and over two fits take each other's place; whenever it ends, one of them is there, and whole."""
    chance, seeds = random.Random(0), set()
    for _ in range(4):
        saved = tmp_path / "fit.json"
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        process = Forked(save_for_ever, tmp_path)
        wait_until(lambda saved=saved, before=before: saved.exists() and saved.stat().st_mtime_ns > before)
        assert process.end(chance.uniform(0.0, 0.3))[0] == -signal.SIGKILL
        seeds.add(read(tmp_path).record.seed)
    assert seeds <= {0, 1}


def wait_until(it_is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not it_is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def let_files_not_grow() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


class TestCommand:
    def test_ctrl_c_and_a_second_process(self, data: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        words = ["compare", str(data), "--epochs", "1000000", "--out", str(out)]
        first = command(*words)
        wait_until(lambda: list(out.glob("fits/*/state")))
        for other in (["compare", str(data), "--out", str(out)], ["resume", str(out)]):
            code, _, errors = command(*other).end()
            assert code == 1
            assert f"{out}: another process (process {first.pid}) is writing there" in errors
            assert "Traceback" not in errors
        first.send(signal.SIGINT)
        code, output, errors = first.end()
        assert code == 130
        assert output == ""
        assert errors.splitlines()[-1] == f"pyro-vae: interrupted; `pyro-vae resume {out}` goes on with it"
        assert "Traceback" not in errors

    def test_files_that_may_not_grow(self, data: Path, tmp_path: Path) -> None:
        """As on a full disk: the kernel refuses the write itself."""
        out = tmp_path / "run"
        words = ["compare", str(data), "--epochs", "2", "--seeds", "1", "--draws", "100", "--out", str(out)]
        code, _, errors = command(*words, first=let_files_not_grow).end()
        assert code == 1
        assert errors.splitlines()[-1].startswith(f"pyro-vae: {out}")
        assert f"File too large; `pyro-vae resume {out}` goes on with it" in errors
        assert "Traceback" not in errors

    def test_resume_tells_the_result(self, whole: Path) -> None:
        code, output, errors = command("resume", str(whole)).end()
        assert code == 0, errors
        assert "nats per observation" in output
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
def test_one_writer_at_a_time(act: Callable[[Study], Any], small_study: Study, whole: Path) -> None:
    before = contents(whole)
    with (
        writing(RunFolder(whole)),
        pytest.raises(BlockingIOError, match=r"another process .* is writing there; wait for it"),
    ):
        act(small_study)
    assert contents(whole) == before


def test_a_run_whose_data_have_changed_is_not_gone_on_with(
    small_study: Study, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "units.nc").unlink()
    changed = pyro_vae.data.load(str(data))
    changed.x[0, 0] += 1
    monkeypatch.setattr("pyro_vae.study.material.load", lambda *_, **__: changed)
    with pytest.raises(ValueError, match=r"the data .*counts.npy' are not those that the run in .* was made"):
        resume_study(run, progress=False)
    with pytest.raises(ValueError, match=r"the data .*counts.npy' are not those that the run in .* was made"):
        diagnose_again(small_study, draws=200, progress=False)


def test_a_diagnosis_that_is_stopped_is_gone_on_with(
    small_study: Study, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it new and half of it old would be the worst."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    study = dataclasses.replace(small_study, folder=run)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):  # noqa: PT012
        patched.setattr(completion, "write_findings", lambda *_: stop())
        diagnose_again(study, draws=200, progress=False)
    with pytest.raises(ValueError, match=r"is 'diagnosing' and not done; `pyro-vae resume .*` goes on"):
        Study.load(run)
    again = resume_study(run, progress=False)
    assert again.config.draws == again.diagnostics.attrs["draws"] == 200


def stop() -> None:
    raise StoppedError
