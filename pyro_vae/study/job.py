"""The job from data to report, and the parts of it that can be done again on a run that exists."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pyro_vae import data as data_sets
from pyro_vae.report.findings import MEASURES, Findings
from pyro_vae.report.html import render_page
from pyro_vae.report.pictures import draw_figures
from pyro_vae.report.readings import read_findings_aloud
from pyro_vae.run_folder import RunFolder, claim
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.measures import ScaleHistory, combine, first_fit_gaps, measure_fit, posterior_tree
from pyro_vae.study.pairs import make_pair, split_data
from pyro_vae.study.result import Study
from pyro_vae.study.saved import write_findings
from pyro_vae.svi import Fit, NonFiniteError, fit
from pyro_vae.svi.devices import resolve_device
from pyro_vae.svi.many_steps import build_pays
from pyro_vae.svi.progress import Show, progress_bar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["diagnose_again", "report_again", "run_study"]

logger = logging.getLogger(__name__)

WATCHED_ROWS = 64
"""Training observations whose σ is noted after every epoch."""

Fits = dict[str, list[Fit]]


def run_study(
    config: StudyConfig | None = None, *, out: str | Path | None = None, progress: bool = True
) -> Study:
    """Fit every guide with every seed, diagnose each on held-out data, compare, and write it all down.

    Parameters
    ----------
    config
        What to do; by default the comparison of three guides on scikit-learn's handwritten digits.
    out
        Folder of the run (see :mod:`pyro_vae.run_folder`), by default ``runs/<data>``. It must be new, empty,
        or hold an earlier run, which is replaced.
    progress
        A bar on a terminal, lines of the log elsewhere.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        If the data cannot be loaded, there is no such device, or the folder holds something else.
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
    device = str(resolve_device(config.device))
    everything, train, held_out = _load(config)
    folder = claim(Path("runs") / everything.name if out is None else out)
    folder.write_record(dataclasses.asdict(config), device, {"status": "running"})
    fits, failures = _fit_all(config, train, folder, progress)
    if not fits:
        raise NonFiniteError(f"no guide could be fitted: {next(iter(failures.values()))}")
    findings = _examine(config, fits, held_out, failures, progress)
    return _write_down(Study(config, folder.root, findings), device)


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
    asked = {"draws": draws, "gap_observations": gap_observations}
    changes = {name: value for name, value in asked.items() if value is not None}
    config = dataclasses.replace(study.config, **changes)  # type: ignore[arg-type]
    _, train, held_out = _load(config)
    folder = RunFolder(study.folder)
    fits: Fits = {}
    for name in study.findings.guides:
        pairs = [make_pair(config, train, name, seed) for seed in range(config.seeds)]
        fits[name] = [Fit.load(folder.fit(name, seed), *pair) for seed, pair in enumerate(pairs)]
    findings = _examine(config, fits, held_out, study.failures, progress)
    return _write_down(Study(config, study.folder, findings), str(folder.read_record()["device"]))


def report_again(study: Study) -> Path:
    """Draw figures and page of a run anew from what lies in its folder; returns the page's path."""
    folder = RunFolder(study.folder)
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
    folder.report.write_text(page, encoding="utf-8")
    return folder.report


def _load(config: StudyConfig) -> tuple[data_sets.DataSet, data_sets.DataSet, data_sets.DataSet]:
    """All, training and held-out data."""
    everything = data_sets.load(config.data, root=config.root, likelihood=config.likelihood)
    return everything, *split_data(everything, config.held_out)


def _write_down(study: Study, device: str) -> Study:
    folder, findings = RunFolder(study.folder), study.findings
    write_findings(folder, findings)
    result = {
        "status": "done",
        "answer": study.answer,
        "image_shape": findings.image_shape,
        "failures": dict(findings.failures),
    }
    folder.write_record(dataclasses.asdict(study.config), device, result)
    report_again(study)
    return study


def _fit_all(
    config: StudyConfig, train: data_sets.DataSet, folder: RunFolder, progress: bool
) -> tuple[Fits, dict[str, str]]:
    """Seed by seed, so that guides are at every moment equally far."""
    fits: Fits = {name: [] for name in config.scales}
    failures: dict[str, str] = {}
    with progress_bar(config.seeds * len(config.scales) * config.epochs, "epochs", enabled=progress) as show:
        for seed in range(config.seeds):
            for i, name in enumerate(config.scales):
                if name in failures:
                    continue
                done = (seed * len(config.scales) + i) * config.epochs
                try:
                    fitted = _fit_one(config, train, name, seed, show, done)
                except NonFiniteError as error:
                    failures[name] = f"{name}, seed {seed}: {error}"
                    logger.warning("the guide %s is left out: %s", name, error)
                    continue
                fitted.save(folder.fit(name, seed))
                fits[name].append(fitted)
    return {name: by_seed for name, by_seed in fits.items() if name not in failures}, failures


def _fit_one(
    config: StudyConfig, train: data_sets.DataSet, scale: str, seed: int, show: Show, done: int
) -> Fit:
    model, guide = make_pair(config, train, scale, seed)
    about = f"{scale}, seed {seed}"
    scales = ScaleHistory(guide, torch.as_tensor(train.x[:WATCHED_ROWS]))
    fitted = fit(
        model,
        guide,
        train.x,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        device=config.device,
        engine=_engine(config, len(train.x)),
        progress=False,
        callbacks=[
            scales,
            lambda r: show(done + r.epoch + 1, f"{about}: loss {r.loss:.4g} nats"),
        ],
    )
    history = fitted.history.assign(scale=(("epoch", "latent"), scales.epochs))
    return dataclasses.replace(fitted, history=history)


def _engine(config: StudyConfig, observations: int) -> str:
    """Native where all fits of a guide together are worth its build; one of them alone may not be."""
    steps = config.seeds * config.epochs * math.ceil(observations / config.batch_size)
    return "native" if resolve_device(config.device).type == "cpu" and build_pays(steps) else "auto"


def _examine(
    config: StudyConfig,
    fits: Mapping[str, Sequence[Fit]],
    held_out: data_sets.DataSet,
    failures: Mapping[str, str],
    progress: bool,
) -> Findings:
    """Everything that is measured of the fits on held-out data."""
    measured: dict[str, list[dict[str, xr.Dataset]]] = {name: [] for name in fits}
    first = {name: by_seed[0] for name, by_seed in fits.items()}
    total = sum(map(len, fits.values()))
    with progress_bar(total, "diagnosing", enabled=progress) as show:
        for seed in range(config.seeds):
            for name, by_seed in fits.items():
                measured[name].append(measure_fit(by_seed[seed], held_out, config, seed))
                show(sum(map(len, measured.values())), f"{name}, seed {seed}")
    return Findings(
        histories={name: [fitted.history for fitted in by_seed] for name, by_seed in fits.items()},
        posteriors={name: posterior_tree(fitted, held_out, name) for name, fitted in first.items()},
        gaps=first_fit_gaps(first, held_out, config, progress=progress),
        image_shape=held_out.image_shape,
        failures=failures,
        **{measure: combine(measured, measure) for measure in MEASURES},
    )
