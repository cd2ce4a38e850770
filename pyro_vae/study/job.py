"""The job from data to report, and the parts of it that can be done again on a run that exists."""

import dataclasses
import functools
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae import data as data_sets
from pyro_vae.report.findings import MEASURES, Findings
from pyro_vae.report.html import render_page
from pyro_vae.report.pictures import draw_figures
from pyro_vae.report.readings import read_findings_aloud
from pyro_vae.run_folder import RunFolder, claim, open_run, writing
from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.records import checksum_of_rows
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.fits import Task, fit_all, fit_as_follower
from pyro_vae.study.measures import combine, fit_gaps, measure_fit, posterior_tree
from pyro_vae.study.pairs import make_pair, split_data
from pyro_vae.study.parts import Parts
from pyro_vae.study.result import Study, require_path, require_study
from pyro_vae.study.saved import write_findings
from pyro_vae.svi import Fit, NonFiniteError
from pyro_vae.svi.checkpoint import settle
from pyro_vae.svi.devices import resolve_device
from pyro_vae.svi.progress import progress_bar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["diagnose_again", "follow_study", "report_again", "resume_study", "run_study"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What the parts of a study need to know."""

    config: StudyConfig
    device: str
    everything: data_sets.DataSet
    train: data_sets.DataSet
    held_out: data_sets.DataSet
    data: str
    """Checksum of the observations."""


@dataclass(frozen=True)
class _Options:
    """How a study is carried out, which does not change what it finds."""

    progress: bool
    checkpoint_seconds: float
    distributed: bool


def run_study(
    config: StudyConfig | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    distributed: bool = False,
) -> Study:
    """Fit every guide with every seed, diagnose each on held-out data, compare, and write it all down.

    Whatever ends it, :func:`resume_study` goes on with it.

    Parameters
    ----------
    config
        What to do; by default the comparison of three guides on scikit-learn's handwritten digits.
    out
        Folder of the run (see :mod:`pyro_vae.run_folder`), by default ``runs/<data>``. It must be new, empty,
        or hold an earlier run, which is replaced.
    progress
        A bar on a terminal, lines of the log elsewhere.
    checkpoint_seconds
        How often the state of a fit is written: so much work is lost at most where the process is killed.
    distributed
        Spread each fit over the processes that ``torchrun`` has started. This one must be the first of them,
        and the others call :func:`follow_study`.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        If the data cannot be loaded, there is no such device, or the folder holds something else.
    BlockingIOError
        If another process is writing into the folder.
    OSError
        If the folder cannot be written any more; what is there stays as it is.
    NonFiniteError
        If no guide could be fitted. As long as one could, the others are reported in ``Study.failures``.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders (evidence of held-out
    observations). Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work? (k̂); Using Stacking to
    Average Bayesian Predictive Distributions (weights).

    Examples
    --------
    ``run_study(StudyConfig("digits", scales=("logvar", "softplus"), seeds=5), out="runs/two")``
    """
    config = StudyConfig() if config is None else config
    if not isinstance(config, StudyConfig):
        hint = f"StudyConfig({config!r})" if isinstance(config, str) else "StudyConfig(...)"
        raise TypeError(f"config is a {type(config).__name__}; give {hint}")
    if out is not None:
        require_path("out", out)
    job = _job(config)
    root = Path("runs") / job.everything.name if out is None else out
    asked = dataclasses.asdict(job.config)
    with claim(root, asked, job.device, data=job.data) as folder, _says_how_to_go_on(folder):
        return _carry_out(job, folder, _Options(progress, checkpoint_seconds, distributed))


def resume_study(
    folder: str | Path,
    *,
    progress: bool = True,
    checkpoint_seconds: float = 30.0,
    distributed: bool = False,
) -> Study:
    """Go on with a run that was interrupted, to the result of one that was not.

    Fits that were finished are not fitted again; the one that was interrupted goes on from its last
    checkpoint, on the CPU to the same bits. What is missing of diagnoses, figures and page is made. A run
    that is complete is read.

    Parameters
    ----------
    folder
        Of the run.
    progress, checkpoint_seconds, distributed
        As in :func:`run_study`.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ValueError
        If its record is damaged or of a newer version, the data have changed, or the device is not here.
    BlockingIOError, OSError, NonFiniteError
        As :func:`run_study`.

    Examples
    --------
    ``resume_study("runs/digits").answer``
    """
    run = open_run(folder)
    with writing(run), _says_how_to_go_on(run):
        run.tidy()
        record = run.read_record()
        if record["result"].get("status") == "done":
            try:
                study = Study.load(run.root)
            except ValueError as error:
                logger.warning("the run is made whole again: %s", error)
            else:
                if not run.report.is_file():
                    _draw_report(study, run)
                return study
        job = _job(StudyConfig.from_mapping(record["config"]), device=str(record["device"]))
        _check_data(job, record, run)
        if record["result"].get("status") == "clearing":
            run.clear()
        _note(job, run, "running")
        return _carry_out(job, run, _Options(progress, checkpoint_seconds, distributed))


def follow_study(config: StudyConfig) -> None:
    """Take part in the fits of a study that the first process of ``torchrun`` carries out with
    ``run_study(config, distributed=True)``; returns when the last one is fitted.

    Examples
    --------
    ``follow_study(StudyConfig("digits"))``
    """
    job = _job(config)
    fit_as_follower(config, job.train, job.device)


def diagnose_again(
    study: Study, *, draws: int | None = None, gap_observations: int | None = None, progress: bool = True
) -> Study:
    """Diagnose the fits of a finished run once more, and write diagnostics, comparison and report anew.

    Parameters
    ----------
    study
        From :meth:`Study.load`.
    draws, gap_observations
        As in :class:`StudyConfig`; by default those of the run.
    progress
        As in :func:`run_study`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data are not where they were or the fits do not suit them.
    """
    require_study(study)
    asked = {"draws": draws, "gap_observations": gap_observations}
    changes = {name: value for name, value in asked.items() if value is not None}
    config = dataclasses.replace(study.config, **changes)  # type: ignore[arg-type]
    folder = RunFolder(study.folder)
    with writing(folder), _says_how_to_go_on(folder):
        record = folder.read_record()
        job = _job(config, device=str(record["device"]))
        _check_data(job, record, folder)
        _note(job, folder, "diagnosing")
        folder.report.unlink(missing_ok=True)
        return _examine_and_write(job, folder, study.findings.guides, study.failures, progress)


def report_again(study: Study) -> Path:
    """Draw figures and page of a run anew from what lies in its folder; returns the page's path."""
    require_study(study)
    folder = RunFolder(study.folder)
    with writing(folder):
        return _draw_report(study, folder)


def _draw_report(study: Study, folder: RunFolder) -> Path:
    folder.figures.mkdir(exist_ok=True)
    page = render_page(
        title=f"pyro-vae: {study.config.data}",
        findings=study.findings,
        readings=read_findings_aloud(study.findings),
        pictures=draw_figures(folder.figures, study.findings),
        command=study.config.command(out=study.folder),
        config=dataclasses.asdict(study.config),
        record=folder.read_record(),
    )
    write_whole(folder.report, page.encode())
    return folder.report


def _job(config: StudyConfig, device: str | None = None) -> _Job:
    resolved = str(resolve_device(config.device if device is None else device))
    everything = data_sets.load(config.data, root=config.root, likelihood=config.likelihood)
    parts = split_data(everything, config.held_out)
    return _Job(config, resolved, everything, *parts, checksum_of_rows(everything.x))


def _check_data(job: _Job, record: Mapping[str, Any], folder: RunFolder) -> None:
    if record.get("data") != job.data:
        raise ValueError(
            f"the data {job.config.data!r} are not those that the run in {folder.root} was made with; "
            "put them back, or make a new run"
        )


def _note(job: _Job, folder: RunFolder, status: str) -> None:
    """Say in the record how far the run is."""
    folder.write_record(dataclasses.asdict(job.config), job.device, {"status": status}, data=job.data)


@contextmanager
def _says_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(f"`pyro-vae resume {shlex.quote(str(folder.root))}` goes on with it")
        raise


def _carry_out(job: _Job, folder: RunFolder, options: _Options) -> Study:
    """Everything that is not there yet."""
    failures = _fit_missing(job, folder, options)
    guides = [name for name in job.config.scales if name not in failures]
    if not guides:
        raise NonFiniteError(f"no guide could be fitted: {next(iter(failures.values()))}")
    return _examine_and_write(job, folder, guides, failures, options.progress)


def _examine_and_write(
    job: _Job, folder: RunFolder, guides: Sequence[str], failures: Mapping[str, str], progress: bool
) -> Study:
    """Diagnose the fits as they are on disk, so that it is all one whether this process has fitted them."""
    fits = {name: [_load_fit(job, folder, name, seed) for seed in range(job.config.seeds)] for name in guides}
    study = Study(job.config, folder.root, _examine(job, folder, fits, failures, progress))
    findings = study.findings
    files = write_findings(folder, findings)
    result = {
        "status": "done",
        "answer": study.answer,
        "image_shape": findings.image_shape,
        "failures": dict(findings.failures),
    }
    folder.write_record(dataclasses.asdict(job.config), job.device, result, data=job.data, files=files)
    _parts(job.config, folder).clear()
    _draw_report(study, folder)
    return study


def _load_fit(job: _Job, folder: RunFolder, name: str, seed: int) -> Fit:
    pair = make_pair(job.config, job.train, name, seed)
    for program in pair:
        program.to(job.device)
    return Fit.load(folder.fit(name, seed), *pair)


def _fit_missing(job: _Job, folder: RunFolder, options: "_Options") -> dict[str, str]:
    """Fit what is not fitted, seed by seed, so that guides are at every moment equally far; returns what
    failed, and why."""
    config, tasks = job.config, []
    for seed in range(config.seeds):
        for name in config.scales:
            if _is_fitted(job, folder, name, seed):
                (folder.fit(name, seed) / "state").unlink(missing_ok=True)
            else:
                tasks.append(Task(name, seed))
    return fit_all(
        config,
        job.train,
        job.device,
        tasks,
        folder,
        checkpoint_seconds=options.checkpoint_seconds,
        progress=options.progress,
        distributed=options.distributed,
    )


def _is_fitted(job: _Job, folder: RunFolder, name: str, seed: int) -> bool:
    try:
        settle(folder.fit(name, seed))
        _load_fit(job, folder, name, seed)
    except FileNotFoundError:
        return False
    except ValueError as error:
        logger.warning("%s, seed %d is fitted again: %s", name, seed, error)
        return False
    return True


def _examine(
    job: _Job,
    folder: RunFolder,
    fits: Mapping[str, Sequence[Fit]],
    failures: Mapping[str, str],
    progress: bool,
) -> Findings:
    """Everything that is measured of the fits on held-out data."""
    config, held_out = job.config, job.held_out
    measured: dict[str, list[dict[str, xr.Dataset]]] = {name: [] for name in fits}
    first = {name: by_seed[0] for name, by_seed in fits.items()}
    parts = _parts(config, folder)
    total = sum(map(len, fits.values()))
    with progress_bar(total, "diagnosing", enabled=progress) as show:
        for seed in range(config.seeds):
            for name, by_seed in fits.items():
                measure = functools.partial(measure_fit, by_seed[seed], held_out, config, seed)
                measured[name].append(parts.get(f"{name}-{seed}", measure))
                show(sum(map(len, measured.values())), f"{name}, seed {seed}")
    return Findings(
        histories={name: [fitted.history for fitted in by_seed] for name, by_seed in fits.items()},
        posteriors={name: posterior_tree(fitted, held_out, name) for name, fitted in first.items()},
        gaps=_gaps(job, first, parts, progress),
        image_shape=held_out.image_shape,
        failures=failures,
        **{measure: combine(measured, measure) for measure in MEASURES},
    )


def _parts(config: StudyConfig, folder: RunFolder) -> Parts:
    return Parts(folder.parts, {"draws": config.draws, "gap_observations": config.gap_observations})


def _gaps(job: _Job, first: Mapping[str, Fit], parts: Parts, progress: bool) -> "xr.Dataset | None":
    """By guide, where its first fit loses; ``None`` if not asked."""
    if job.config.gap_observations == 0:
        return None
    gaps: dict[str, list[dict[str, xr.Dataset]]] = {}
    with progress_bar(len(first), "best q of each observation", enabled=progress) as show:
        for name, fitted in first.items():
            measure = functools.partial(fit_gaps, fitted, job.held_out, job.config)
            gaps[name] = [parts.get(f"{name}-gaps", measure)]
            show(len(gaps), name)
    return combine(gaps, "gaps").isel(seed=0, drop=True)
