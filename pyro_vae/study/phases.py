"""Fit what is missing of a study, and measure every fit: its two long phases."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.data import DataSet
from pyro_vae.progress import progress_bar
from pyro_vae.report.findings import MEASURES, REFINED, Findings
from pyro_vae.run_folder import RunFolder
from pyro_vae.storage.inspection import inspect_files
from pyro_vae.study.elsewhere.dispatch import runs_elsewhere
from pyro_vae.study.elsewhere.sentences import each_once
from pyro_vae.study.fits import Task, fit_all, load_fit
from pyro_vae.study.material import Material
from pyro_vae.study.measures import combine, fit_gaps, measure_fit, posterior_tree
from pyro_vae.study.saved import Parts
from pyro_vae.study.workers import Part, measure_on_workers, start_workers
from pyro_vae.svi import Fit, NonFiniteError
from pyro_vae.svi.state.saved import HISTORY, settle

if TYPE_CHECKING:
    import xarray as xr

logger = logging.getLogger(__name__)


def fit_missing(
    material: Material, folder: RunFolder, *, progress: bool, checkpoint_seconds: float, distributed: bool
) -> dict[str, str]:
    """Fit what is not fitted, seed by seed, so that guides are at every moment equally far; returns which
    guides failed, and why.

    The options are those of :func:`~pyro_vae.study.job.run_study`.
    """
    config, tasks = material.config, []
    inspect_files(list(folder.root.glob(f"fits/*/{HISTORY}")))
    for seed in range(config.seeds):
        for name in config.arms:
            if _is_fitted(material, folder, name, seed):
                (folder.fit(name, seed) / "state").unlink(missing_ok=True)
            else:
                tasks.append(Task(name, seed))
    if tasks and not distributed and not runs_elsewhere():
        start_workers(material, config.seeds * len(config.arms))
    return fit_all(
        material,
        tasks,
        folder,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        distributed=distributed,
    )


def _is_fitted(material: Material, folder: RunFolder, name: str, seed: int) -> bool:
    try:
        settle(folder.fit(name, seed))
        load_fit(material, folder, name, seed)
    except FileNotFoundError:
        return False
    except ValueError as error:
        logger.warning("%s, seed %d is fitted again: %s", name, seed, error)
        return False
    return True


def examine(
    material: Material,
    folder: RunFolder,
    guides: Sequence[str],
    failures: Mapping[str, str],
    parts: Parts,
    *,
    progress: bool,
) -> Findings:
    """Everything that is measured on held-out data of the fits of these guides.

    The fits are those on disk, so it makes no difference whether this process has fitted them. What lies in
    ``parts`` is not measured again.
    """
    config, held_out = material.config, material.held_out
    fits = {name: [load_fit(material, folder, name, seed) for seed in range(config.seeds)] for name in guides}
    measured: dict[str, list[dict[str, xr.Dataset]]] = {name: [] for name in fits}
    first = {name: by_seed[0] for name, by_seed in fits.items()}
    total = sum(map(len, fits.values()))
    with each_once(), progress_bar(total, "diagnosing", enabled=progress) as show:
        wanted = [Part(name, seed) for seed in range(config.seeds) for name in fits]
        if config.gap_observations:
            wanted += [Part(name, None) for name in fits]
        missing = [part for part in wanted if not parts.has(part.name)]
        measure_on_workers(material, folder, missing, parts, show, total)
        for seed in range(config.seeds):
            for name, by_seed in fits.items():
                measure = functools.partial(measure_fit, by_seed[seed], material, seed)
                measured[name].append(parts.get(Part(name, seed).name, measure))
                show(sum(map(len, measured.values())), f"{name}, seed {seed}")
    gaps = _gaps(material, first, parts, progress)
    run_away = {
        name: told for name in fits if (told := _not_finite(name, fits[name], measured[name], gaps.get(name)))
    }
    if len(run_away) == len(fits):
        raise NonFiniteError("; ".join(run_away.values()))
    for name, told in run_away.items():
        logger.warning("left out: %s", told)
        del fits[name], measured[name]
        gaps.pop(name, None)
    posteriors = {
        name: posterior_tree(by_seed[0], material, name, measured[name][0]["calibration"])
        for name, by_seed in fits.items()
    }
    return Findings(
        histories={name: [fitted.history for fitted in by_seed] for name, by_seed in fits.items()},
        posteriors=posteriors,
        gaps=combine(gaps, "gaps").isel(seed=0, drop=True) if gaps else None,
        image_shape=held_out.image_shape if _observe_rows(posteriors, held_out) else None,
        failures={**failures, **run_away},
        **{measure: combine(measured, measure) for measure in (*MEASURES, *REFINED)},
    )


def _observe_rows(posteriors: "Mapping[str, xr.DataTree]", held_out: DataSet) -> bool:
    """Whether what the models observe is a row of the data, and not something else made of it."""
    observed = [tree["observed_data"].to_dataset() for tree in posteriors.values()]
    first = [data[next(iter(data.data_vars))] for data in observed]
    return all(array[0].size == held_out.x.shape[1] for array in first)


def _not_finite(
    name: str,
    fits: Sequence[Fit],
    measured: "Sequence[Mapping[str, xr.Dataset]]",
    gaps: "Sequence[Mapping[str, xr.Dataset]] | None",
) -> str:
    """Which number of a guide's fits is not finite, in a sentence; empty if all of them are."""
    for seed, (fitted, measures) in enumerate(zip(fits, measured, strict=True)):
        numbers = {
            "ELBO": measures["diagnostics"]["elbo"],
            "refined ELBO": measures["refined"]["elbo"],
            "log evidence": measures["refined"]["log_evidence"],
        }
        if gaps is not None and seed == 0:
            numbers["ELBO of the best q"] = gaps[0]["gaps"]["elbo_local"]
        for what, values in numbers.items():
            bad = int((~np.isfinite(values)).sum())
            if bad:
                loss = float(fitted.history["validation"][-1])
                return (
                    f"{name}, seed {seed}: the {what} of {bad} of {values.size} held-out observations is not "
                    f"finite, with a held-out loss of {loss:.4g} nats; the fit has run away: try a smaller lr"
                )
    return ""


def _gaps(
    material: Material, first: Mapping[str, Fit], parts: Parts, progress: bool
) -> "dict[str, list[dict[str, xr.Dataset]]]":
    """By guide, where its first fit loses; nothing if not asked."""
    if material.config.gap_observations == 0:
        return {}
    gaps: dict[str, list[dict[str, xr.Dataset]]] = {}
    with progress_bar(len(first), "best q of each observation", enabled=progress) as show:
        for name, fitted in first.items():
            measure = functools.partial(fit_gaps, fitted, material)
            gaps[name] = [parts.get(Part(name, None).name, measure)]
            show(len(gaps), name)
    return gaps
