"""Make the fits of a study: here one after another, on joblib's workers, or each on many devices."""

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyro_vae.devices import resolve_device
from pyro_vae.guides.encoder_guide import EncoderGuide
from pyro_vae.naming import attributes
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.progress import Show, progress_bar
from pyro_vae.run_folder import RunFolder
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.elsewhere.dispatch import finished_jobs, runs_elsewhere
from pyro_vae.study.elsewhere.sentences import Sentence, each_once, say, taken_along
from pyro_vae.study.material import Material
from pyro_vae.study.measures import ScaleHistory
from pyro_vae.study.pairs import make_pair
from pyro_vae.svi import ELBO, IWAE, STL, Checkpoint, Fit, NonFiniteError, Renyi, fit
from pyro_vae.svi.engines.choice import build_pays
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.parallel.launch import hear, tell
from pyro_vae.svi.state import saved as saved_fits
from pyro_vae.svi.state.saved import SavedFit

logger = logging.getLogger(__name__)

WATCHED_ROWS = 64
"""Training observations whose σ is noted after every epoch."""


@dataclass(frozen=True)
class Task:
    """One of a study's fits."""

    guide: str
    seed: int

    def __str__(self) -> str:
        return f"{self.guide}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    task: Task
    saved: SavedFit | None
    failure: str = ""
    said: Sequence[Sentence] = ()
    """What is still to be said here."""


def fit_all(
    material: Material,
    tasks: Sequence[Task],
    folder: RunFolder,
    *,
    checkpoint_seconds: float,
    progress: bool,
    distributed: bool = False,
) -> dict[str, str]:
    """Fit and save; returns which guides failed, and why.

    One after another in this process; at once where ``joblib.parallel_config`` asks for it; or, distributed,
    one after another with every fit spread over the processes of ``torchrun``, of which this is the first.
    The numbers are the same here and on workers.
    """
    failures: dict[str, str] = {}
    config = material.config
    everything = config.seeds * len(config.arms)
    before = (everything - len(tasks)) * config.epochs
    with each_once(), progress_bar(everything * config.epochs, "epochs", enabled=progress) as show:
        if runs_elsewhere() and not distributed:
            outcomes = _fit_elsewhere(material, tasks, show, before)
        else:
            places = _Places(folder, checkpoint_seconds, distributed)
            outcomes = _fit_here(material, tasks, places, show, before, failures)
        for outcome in outcomes:
            task = outcome.task
            say(outcome.said)
            place = folder.fit(task.guide, task.seed)
            if outcome.saved is None:
                (place / "state").unlink(missing_ok=True)
                with suppress(OSError):  # where an earlier fit lies
                    place.rmdir()
                failures.setdefault(task.guide, f"{task}: {outcome.failure}")
                logger.warning("the guide %s is left out: %s", task.guide, outcome.failure)
                continue
            saved_fits.write(place, outcome.saved.tensors, outcome.saved.record, outcome.saved.history)
            (place / "state").unlink(missing_ok=True)
    return failures


@dataclass(frozen=True)
class _Places:
    """Where fits of this process write their states."""

    folder: RunFolder
    seconds: float
    distributed: bool

    def checkpoint(self, task: Task) -> Checkpoint:
        return Checkpoint(self.folder.fit(task.guide, task.seed) / "state", self.seconds)


def _fit_here(
    material: Material,
    tasks: Sequence[Task],
    places: _Places,
    show: Show,
    before: int,
    failures: dict[str, str],
) -> Iterator[Outcome]:
    """One after another; the next seeds of a guide that has failed are not tried."""
    turn = 0
    try:
        for i, task in enumerate(tasks):
            if task.guide in failures:
                continue
            if places.distributed:
                tell(turn, f"{task.guide} {task.seed}")
                turn += 1
            epochs = before + i * material.config.epochs
            yield _outcome(
                material,
                task,
                show=lambda done, note, epochs=epochs: show(epochs + done, note),
                checkpoint=places.checkpoint(task),
                distributed=places.distributed,
            )
    finally:
        if places.distributed:
            tell(turn, "")


def fit_as_follower(material: Material) -> None:
    """Take part in the fits of a distributed study, as another process than its first."""
    for turn in itertools.count():
        word = hear(turn)
        if not word:
            return
        guide, seed = word.split()
        with suppress(NonFiniteError):  # which the first process tells
            task, unused = Task(guide, int(seed)), Checkpoint(os.devnull)
            fit_one(material, task, checkpoint=unused, distributed=True)


def no_more_fits() -> None:
    """Let the followers go who wait for a first fit."""
    tell(0, "")


def _fit_elsewhere(material: Material, tasks: Sequence[Task], show: Show, before: int) -> Iterator[Outcome]:
    sent = dataclasses.replace(material, device=material.config.device).in_pieces()
    for i, (task, outcome) in enumerate(finished_jobs(_fit_from_afar, tasks, *sent), 1):
        show(before + i * material.config.epochs, str(task))
        yield outcome


def _fit_from_afar(task: Task, without_rows: Material, *rows: Any) -> Outcome:
    """On a worker. The device is that of the worker: "auto" may be another one there than here."""
    with taken_along() as said:
        outcome = _outcome(without_rows.with_rows(*rows), task)
    return dataclasses.replace(outcome, said=said)


def _outcome(material: Material, task: Task, **options: Any) -> Outcome:
    try:
        return Outcome(task, fit_one(material, task, **options).saved())
    except NonFiniteError as error:
        return Outcome(task, None, str(error))


def fit_one(
    material: Material,
    task: Task,
    *,
    show: Show = lambda _done, _note: None,
    checkpoint: Checkpoint | None = None,
    distributed: bool = False,
) -> Fit:
    """One fit, with the guide's σ and the held-out loss in its history."""
    config, x = material.config, material.train.x
    model, guide = make_pair(config, material.train, task.guide, task.seed)
    watched = torch.as_tensor(x[:WATCHED_ROWS])
    scales = ScaleHistory(guide, watched) if isinstance(guide, EncoderGuide) else None
    fitted = fit(
        model,
        guide,
        x,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        schedule=_schedule(config, len(x)),
        validation=material.held_out.x,
        objective=_objective(config),
        seed=task.seed,
        device=material.device,
        engine="auto" if distributed else _engine(config, material.device, len(x)),
        checkpoint=checkpoint,
        distributed=distributed,
        progress=False,
        callbacks=[
            *([] if scales is None else [scales]),
            lambda r: show(r.epoch + 1, f"{task}: loss {r.loss:.4g} nats"),
        ],
    )
    if scales is not None:
        named_scale = attributes("σ of the guide, geometric mean over watched rows")
        fitted.history["scale"] = ("epoch", "latent"), scales.epochs, named_scale
    return fitted


def load_fit(material: Material, folder: RunFolder, name: str, seed: int) -> Fit:
    """A fit of the run, from its folder."""
    pair = make_pair(material.config, material.train, name, seed)
    for module in modules_of(*pair):
        module.to(material.device)
    return Fit.load(folder.fit(name, seed), *pair)


def _objective(config: StudyConfig) -> Objective:
    """What is minimized, with the draws that were asked for."""
    several = config.objective in ("iwae", "renyi")
    particles = (5 if several else 1) if config.particles is None else config.particles
    made: dict[str, Callable[[], Objective]] = {
        "elbo": lambda: ELBO(particles),
        "iwae": lambda: IWAE(particles),
        "renyi": lambda: Renyi(0.5, particles),
        "stl": lambda: STL(particles),
    }
    return made[config.objective]()


def _schedule(config: StudyConfig, observations: int) -> Callable[[Optimizer], LRScheduler] | None:
    """Brings the rate to zero at the end of the fit, so that the loss settles."""
    if config.schedule == "constant":
        return None
    steps = config.epochs * math.ceil(observations / config.batch_size)
    return lambda optimizer: CosineAnnealingLR(optimizer, steps)


def _engine(config: StudyConfig, device: str, observations: int) -> str:
    """Native where all fits of a guide together are worth its build; one of them alone may not be."""
    steps = config.seeds * config.epochs * math.ceil(observations / config.batch_size)
    return "native" if resolve_device(device).type == "cpu" and build_pays(steps) else "auto"
