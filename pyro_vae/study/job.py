"""The job from data to report: begun, resumed, followed."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.arguments import kind, require_path
from pyro_vae.run_folder import RunFolder, claim, open_run, writing
from pyro_vae.study.completion import (
    check_data,
    draw_report,
    examine_and_write,
    note_result,
    says_how_to_go_on,
)
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.fits import fit_as_follower, no_more_fits
from pyro_vae.study.material import Material, load_material, told
from pyro_vae.study.phases import fit_missing
from pyro_vae.study.result import Study
from pyro_vae.svi import NonFiniteError

logger = logging.getLogger(__name__)


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
    overwrite: bool = False,
) -> Study:
    """Fit every guide with every seed, diagnose each on held-out data, compare, and write it all down.

    Whatever ends it, :func:`resume_study` goes on with it, and so does the same call again.

    Parameters
    ----------
    config
        What to do; by default the comparison of three guides on scikit-learn's handwritten digits.
    out
        Folder of the run (see :mod:`pyro_vae.run_folder`), by default ``runs/<data>``. It must be new or
        empty, or hold a run of the same configuration and data: one that is complete is read and returned,
        one that was interrupted goes on.
    progress
        A bar on a terminal, lines of the log elsewhere.
    checkpoint_seconds
        How often the state of a fit is written, which is the work that is lost at most where the process is
        killed.
    distributed
        Spread each fit over the processes that ``torchrun`` has started. This one must be the first of them,
        and the others call :func:`follow_study`.
    overwrite
        Replace whatever run the folder holds.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        If the data cannot be loaded, there is no such device, or the folder holds another run or something
        else.
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
        raise TypeError(f"config is {kind(config)}; give {hint}")
    if out is not None:
        require_path("out", out)
    material = load_material(config)
    logger.info("%s", told(material.account))
    root = Path(Path("runs") / material.name if out is None else out)
    status = None if overwrite else _status_of_same(root, material)
    options = _Options(progress, checkpoint_seconds, distributed)
    if status is not None:
        done = status == "done"
        logger.info(
            "%s holds this very run, and it %s; --overwrite makes it anew",
            root,
            "is complete" if done else "was interrupted: it goes on",
        )
        if done and distributed:
            no_more_fits()
        return resume_study(root, **vars(options))
    asked = dataclasses.asdict(material.config)
    claimed = claim(
        root,
        asked,
        material.device,
        data=material.checksum,
        read=material.account,
        overwrite=overwrite,
    )
    with claimed as folder, says_how_to_go_on(folder):
        return _carry_out(material, folder, options)


def _status_of_same(root: Path, material: Material) -> str | None:
    """How far the run in a folder is, if it is one of the same configuration and data."""
    folder = RunFolder(root)
    if not folder.record.is_file():
        return None
    try:
        record = folder.read_record()
        same = StudyConfig.from_record(record["config"]) == material.config
    except (ValueError, TypeError):
        return None  # `claim` says that there is a run
    read = record.get("read") or {}
    if not same or record.get("data") != material.checksum:
        return None
    if read.get("program") != material.account.get("program"):
        return None
    return str(record["result"].get("status"))


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
    require_path("folder", folder)
    run = open_run(folder)
    with writing(run), says_how_to_go_on(run):
        run.tidy()
        record = run.read_record()
        if record["result"].get("status") == "done":
            try:
                study = Study.load(run.root)
            except ValueError as error:
                logger.warning("the run is made whole again: %s", error)
            else:
                if not run.report.is_file():
                    draw_report(study, run)
                return study
        material = load_material(StudyConfig.from_record(record["config"]), device=str(record["device"]))
        check_data(material, record, run)
        if record["result"].get("status") == "clearing":
            run.clear()
        note_result(material, run, {"status": "running"})
        return _carry_out(material, run, _Options(progress, checkpoint_seconds, distributed))


def follow_study(config: StudyConfig) -> None:
    """Take part in the fits of a study that the first process of ``torchrun`` carries out with
    ``run_study(config, distributed=True)``; returns when the last one is fitted.

    Examples
    --------
    ``follow_study(StudyConfig("digits"))``
    """
    fit_as_follower(load_material(config))


def _carry_out(material: Material, folder: RunFolder, options: _Options) -> Study:
    """Everything that is not there yet."""
    failures = fit_missing(
        material,
        folder,
        progress=options.progress,
        checkpoint_seconds=options.checkpoint_seconds,
        distributed=options.distributed,
    )
    guides = [name for name in material.config.arms if name not in failures]
    if not guides:
        raise NonFiniteError(f"no guide could be fitted: {next(iter(failures.values()))}")
    return examine_and_write(material, folder, guides, failures, options.progress)
