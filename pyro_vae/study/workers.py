"""Measure the fits of a study at the same time, each on a core of its own: processes that start early."""

import functools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.devices import resolve_device
from pyro_vae.progress import Show
from pyro_vae.run_folder import RunFolder
from pyro_vae.study.elsewhere.dispatch import finished_jobs
from pyro_vae.study.elsewhere.sentences import Sentence, say, taken_along
from pyro_vae.study.fits import load_fit
from pyro_vae.study.material import Material
from pyro_vae.study.measures import fit_gaps, measure_fit
from pyro_vae.study.saved import Parts

logger = logging.getLogger(__name__)

WORTH_WORKERS = 1_000_000
"""Draws of held-out observations, of all fits that are measured: some ten seconds. Workers start in four."""

MOST_WORKERS = 4
"""Each has a copy of torch in memory."""


@dataclass(frozen=True)
class Part:
    """Something to be measured: everything of a fit, or where the first fit of a guide loses."""

    guide: str
    seed: int | None
    """None for the second."""

    @property
    def name(self) -> str:
        """Under which it is kept."""
        return f"{self.guide}-{'gaps' if self.seed is None else self.seed}"

    def __str__(self) -> str:
        return f"{self.guide}, {'gaps' if self.seed is None else f'seed {self.seed}'}"


def start_workers(material: Material, fits: int) -> None:
    """Let workers import everything while this process fits."""
    if workers := _number_of_workers(material, fits):

        def wait() -> None:
            with suppress(Exception), _on_workers(workers):  # who cannot start now says so when it is needed
                for _ in finished_jobs(_import_everything, range(workers)):
                    pass

        Thread(target=wait, daemon=True).start()


def measure_on_workers(
    material: Material, folder: RunFolder, missing: Sequence[Part], parts: Parts, show: Show, total: int
) -> None:
    """Measure what is missing at the same time, where there are several cores and much to do.

    What a worker cannot do is left to this process, where its error is a proper one.

    Parameters
    ----------
    material, folder
        Of the study.
    missing
        What is measured: what takes longest comes first, so that all workers end at about the same time.
    parts
        Where it is kept.
    show, total
        Progress, in fits of so many.
    """
    fits = sum(part.seed is not None for part in missing)
    workers = _number_of_workers(material, fits)
    if not workers:
        return
    done = total - fits
    try:
        with _on_workers(workers):
            for part, said in finished_jobs(
                _measure_from_afar, missing, folder, parts, *material.in_pieces()
            ):
                say(said)
                done += part.seed is not None
                show(done, str(part))
    except Exception as error:
        logger.info("fits are measured one after another: %r", error)
    finally:
        # those that ran the jobs: each holds a copy of torch, and ends slowly
        get_reusable_executor(reuse=True).shutdown(wait=False)


def _number_of_workers(material: Material, fits: int) -> int:
    """How many processes measure this number of fits; none where there is little to do, or one core."""
    rows = fits * len(material.held_out.x) * material.config.draws
    workers = min(torch.get_num_threads(), fits, MOST_WORKERS)
    pays = workers > 1 and rows >= WORTH_WORKERS and resolve_device(material.device).type == "cpu"
    return workers if pays else 0


def _on_workers(number: int) -> "joblib.parallel_config":
    """Jobs go to this number of processes of one thread each."""
    return joblib.parallel_config(backend="loky", n_jobs=number, inner_max_num_threads=1)


def _import_everything(_: int) -> None:
    """On a worker, which has imported this file to find the function: the tracer, too, which torch imports
    when it is called first."""
    make_fx(torch.neg)(torch.ones(1))


def _measure_from_afar(
    part: Part, folder: RunFolder, parts: Parts, without_rows: Material, *rows: Any
) -> Sequence[Sentence]:
    """On a worker: what was said of a part; it lies among the others then."""
    with taken_along() as said:
        material = without_rows.with_rows(*rows)
        fitted = load_fit(material, folder, part.guide, part.seed or 0)
        if part.seed is None:
            measure = functools.partial(fit_gaps, fitted, material)
        else:
            measure = functools.partial(measure_fit, fitted, material, part.seed)
        parts.get(part.name, measure)
    return said
