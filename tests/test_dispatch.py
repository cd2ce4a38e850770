"""Jobs and studies on joblib's workers: the same results, wherever they run and whoever is lost."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import xarray as xr
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend.context import set_start_method
from safetensors.torch import load_file

from pyro_vae.run_folder import RunFolder
from pyro_vae.study import StudyConfig, fits, workers
from pyro_vae.study.elsewhere.dispatch import finished_jobs, runs_elsewhere
from pyro_vae.study.elsewhere.sentences import SPEAKERS
from pyro_vae.study.fits import Task, fit_all
from pyro_vae.study.material import Material
from pyro_vae.study.measures import fit_gaps, measure_fit
from pyro_vae.study.pairs import split_data
from pyro_vae.study.saved import Parts
from pyro_vae.study.workers import Part
from pyro_vae.svi import NonFiniteError
from pyro_vae.svi.engines.steps import CannotError
from pyro_vae.svi.state.saved import read
from tests import jobs
from tests.processes import forkserver

OWN_SEEDS = True


ROOT = Path(__file__).parent.parent

CONFIG = StudyConfig(
    "digits", scales=("abs", "softplus"), seeds=2, epochs=2, hidden=(4,), latent_dim=2, device="cpu"
)


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def two_processes() -> Iterator[None]:
    """Forked from one that has imported everything, since each would take seconds for it; how workers start
    by themselves is seen where they fit."""
    forkserver()
    get_reusable_executor(reuse=True).shutdown()  # of workers that began otherwise
    set_start_method("forkserver", force=True)
    try:
        with joblib.parallel_config(backend="loky", n_jobs=2):
            yield
    finally:
        get_reusable_executor(reuse=True).shutdown()
        set_start_method(None, force=True)


def test_without_configuration_everything_runs_here() -> None:
    assert not runs_elsewhere()
    with joblib.parallel_config(backend="loky", n_jobs=1):
        assert not runs_elsewhere()


def test_threads_are_refused() -> None:
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(ValueError, match="joblib is configured to run jobs on threads"),
    ):
        runs_elsewhere()


@pytest.mark.usefixtures("two_processes")
def test_a_lost_workers_jobs_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        results = dict(finished_jobs(jobs.square_or_die_once, range(6), tmp_path))
    assert results == {i: i * i for i in range(6)}
    assert "a worker was lost" in caplog.text
    assert (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("two_processes")
def test_a_job_that_kills_every_worker_ends_the_others_too(tmp_path: Path) -> None:
    done: list[Any] = []
    with pytest.raises(RuntimeError, match="workers were lost 3 times and no job finished between"):
        done.extend(finished_jobs(jobs.die_always, range(2), tmp_path))


@pytest.mark.usefixtures("two_processes")
def test_what_a_job_raises_is_raised_here_and_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="job 0"):
        list(finished_jobs(jobs.fail, [0], tmp_path))


def fitted(folder: Path, tasks: list[Task]) -> dict[str, str]:
    from pyro_vae import data

    parts = split_data(data.load("digits"), 0.9)
    material = Material(CONFIG, "cpu", "digits", *parts, "", {})
    return fit_all(material, tasks, RunFolder(folder), checkpoint_seconds=30.0, progress=True)


def assert_same_fits(one: Path, other: Path) -> None:
    names = [path.name for path in sorted((one / "fits").iterdir())]
    assert names == [path.name for path in sorted((other / "fits").iterdir())]
    for name in names:
        assert sorted(p.name for p in (one / "fits" / name).iterdir()) == sorted(
            p.name for p in (other / "fits" / name).iterdir()
        )
        first, second = (read(folder / "fits" / name) for folder in (one, other))
        assert first.history.identical(second.history)
        a, b = (load_file(folder / "fits" / name / "params.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


TASKS = [Task(name, seed) for seed in (0, 1) for name in ("abs", "softplus")]


def test_fits_on_workers_are_the_fits_of_this_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit, with the same files; an interrupted fit's state is gone in the end; progress is told."""
    assert fitted(tmp_path / "here", TASKS) == {}
    left = tmp_path / "there" / "fits" / "abs-0" / "state"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of an interrupted fit")
    with joblib.parallel_config(backend="loky", n_jobs=2), caplog.at_level(logging.INFO, "pyro_vae"):
        assert fitted(tmp_path / "there", TASKS) == {}
    assert_same_fits(tmp_path / "here", tmp_path / "there")
    assert "epochs: 8 of 8" in caplog.text


@pytest.mark.slow
def test_measures_on_workers_are_those_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept among the run's parts, where the examination finds them; what no worker can do is done here."""
    from pyro_vae import data

    train, held_out = split_data(data.load("digits"), 0.9)
    few = dataclasses.replace(held_out, x=held_out.x[:20], y=None)
    config = dataclasses.replace(CONFIG, draws=100, gap_observations=5)
    material = Material(config, "cpu", "digits", train, few, "", {})
    assert fitted(tmp_path, TASKS[:2]) == {}
    folder, parts = RunFolder(tmp_path), Parts(tmp_path / "parts", {"draws": 100})
    monkeypatch.setattr(workers, "WORTH_WORKERS", 0)
    there, not_there = (
        [*(Part(task.guide, task.seed) for task in TASKS[:2]), Part("abs", None)],
        Part("abs", 1),
    )
    shown: list[Any] = []

    def show(done: int, note: str) -> None:
        shown.append(done)

    with caplog.at_level(logging.INFO, "pyro_vae"), monkeypatch.context() as patched:
        patched.setattr("torch.get_num_threads", lambda: 2)
        workers.measure_on_workers(material, folder, there, parts, show, 4)
        workers.measure_on_workers(material, folder, [not_there] * 2, parts, show, 4)  # for it is not fitted
    assert len(shown) == 3  # the two fits, which count, and the gaps, which do not
    assert shown == sorted(shown)
    assert {3, 4} <= {*shown} <= {2, 3, 4}
    assert "one after another: FileNotFoundError" in caplog.text
    assert not parts.has(not_there.name)
    for part in there:
        assert parts.has(part.name)
        kept, fit_of = parts.get(part.name, dict), fits.load_fit(material, folder, part.guide, part.seed or 0)
        here = fit_gaps(fit_of, material) if part.seed is None else measure_fit(fit_of, material, part.seed)
        assert kept.keys() == here.keys()
        for name, measured in here.items():
            xr.testing.assert_allclose(kept[name], measured, rtol=1e-3, atol=1e-3)


def test_a_guide_that_fails_on_a_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As jobs come back: a failure is data, not an exception that would end the others."""

    def finished(function: Any, tasks: Any, *shared: Any) -> Iterator[tuple[Task, Any]]:
        return iter([(task, function(task, *shared)) for task in reversed(tasks)])

    def failing(material: Material, task: Task, **options: Any) -> Any:
        if task.guide == "abs":
            raise NonFiniteError("three steps in a row were not finite")
        return real(material, task, **options)

    real = fits.fit_one
    monkeypatch.setattr(fits, "finished_jobs", finished)
    monkeypatch.setattr(fits, "runs_elsewhere", lambda: True)
    monkeypatch.setattr(fits, "fit_one", failing)
    assert fitted(tmp_path, TASKS) == {"abs": "abs, seed 1: three steps in a row were not finite"}
    assert sorted(path.name for path in (tmp_path / "fits").iterdir()) == ["softplus-0", "softplus-1"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_every_fit_would_say_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, elsewhere: bool
) -> None:
    """A study asks for native steps by name, and there may be none for its likelihood."""

    def refuse(*_: object) -> None:
        raise CannotError("an operation")

    monkeypatch.setattr("pyro_vae.svi.engines.native.engine.lower", refuse)
    monkeypatch.setattr(fits, "build_pays", lambda steps: True)
    monkeypatch.setattr(
        fits,
        "finished_jobs",
        lambda function, tasks, *shared: ((task, function(task, *shared)) for task in tasks),
    )
    monkeypatch.setattr(fits, "runs_elsewhere", lambda: elsewhere)
    for again in ("first", "second"):
        assert fitted(tmp_path / again, TASKS[:2]) == {}
        spoken = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert spoken == ["this fit takes its steps one by one (engine 'captured'): an operation"]
        caplog.clear()
    assert all(not logging.getLogger(name).filters for name in SPEAKERS)


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_one_of_which_is_lost(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="pip install pyro-vae[dask]")
    assert fitted(tmp_path / "here", TASKS) == {}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert fitted(tmp_path / "there", TASKS) == {}
        results = dict(finished_jobs(jobs.square_or_die_once, range(6), tmp_path))
    assert results == {i: i * i for i in range(6)}
    assert (tmp_path / "died").exists()
    assert_same_fits(tmp_path / "here", tmp_path / "there")


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path) -> None:
    """The first process writes and prints, once; the second takes its part and leaves."""
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).poisson(3.0, (60, 4)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "pyro_vae", "fit", str(tmp_path / "counts.npy"), "--epochs", "2", "--hidden", "4"]
    options = ["--draws", "100", "--gap-observations", "0", "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [*launch, *command, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"]  # one document, so printed once
    assert (tmp_path / "run" / "report.html").is_file()
    assert read(tmp_path / "run" / "fits" / "softplus-0").history.sizes["epoch"] == 2
