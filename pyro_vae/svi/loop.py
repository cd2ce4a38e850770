"""The loop of a fit: epochs of guarded steps."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.batches.batches import Batch, Batches, GatheredEpoch
from pyro_vae.devices import forked_streams
from pyro_vae.pairs.isolation import Program, evaluating, modules_of
from pyro_vae.pairs.parameters import copy_tensors, named_tensors, restore_tensors
from pyro_vae.svi.engines.captured import CaptureError, EagerEngine, Engine
from pyro_vae.svi.engines.many_steps import ManySteps
from pyro_vae.svi.engines.updates import Update, clipped, make_update, restore_optimizer, total_norm
from pyro_vae.svi.history import EpochRecord, Recorder
from pyro_vae.svi.nonfinite import NonFiniteError, explain
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.parallel.ranks import OneProcess

__all__ = ["EarlyStopping", "Loop"]

logger = logging.getLogger(__name__)
BAD_STEPS_IN_A_ROW = 3
"""One bad step can be a rare draw; three in a row are a fit that will not come back."""

VALIDATION_SEED = 7_368_787
"""Validation draws the same noise at every epoch, so that two epochs differ by the parameters alone."""


@dataclass
class Loop:
    """Everything that changes during a fit, and the steps that change it."""

    model: Program
    guide: Program
    objective: Objective
    parameters: dict[str, Tensor]
    engine: Engine
    optimizer: Optimizer
    schedule: LRScheduler | None
    max_norm: float | None
    count: Callable[[Batch], int]
    """Observations that the totals of a batch are about: the batch's rows, or the full data where a plate
    rescales to it."""
    many_steps: ManySteps | None = None
    stopping: "EarlyStopping | None" = None
    ranks: OneProcess = field(default_factory=OneProcess)
    step: int = 0
    position: int = 0
    """Batches of the running epoch that are done."""
    recorder: Recorder = field(default_factory=Recorder)
    _bad_in_a_row: int = 0
    _bad_in_epoch: int = 0
    _kl_weight: Tensor = field(init=False)
    _weight: float = 1.0
    _update: Update = field(init=False)

    def __post_init__(self) -> None:
        leaf = next(iter(self.parameters.values()))
        self._kl_weight = torch.ones((), dtype=leaf.dtype, device=leaf.device)
        self._update = make_update(self.optimizer, list(self.parameters.values()))

    def run(
        self,
        batches: Batches,
        steps: int,
        validation: Batch | None,
        callbacks: Sequence[Callable[[EpochRecord], None]],
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Epochs until so many steps are taken or the validation loss has stopped to improve.

        ``save`` is called wherever :meth:`state` is whole: after a step, and after an epoch with its
        callbacks.
        """
        while self.step < steps and not (self.stopping is not None and self.stopping.exhausted):
            record = self._run_epoch(batches, steps, validation, save)
            for callback in callbacks:
                callback(record)
            if self.stopping is not None:
                self.stopping.note(record.validation, self.tensors())
            save()

    @property
    def engine_name(self) -> str:
        """What the steps are taken by now."""
        return self.engine.name if self.many_steps is None else self.many_steps.name

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, persistent or not, which early stopping takes back together."""
        named = named_tensors(self.model, self.guide, pyro.get_param_store().get_state())
        known = {id(tensor) for tensor in named.values()}
        buffers = [buffer for module in modules_of(self.model, self.guide) for buffer in module.buffers()]
        others = [buffer for buffer in buffers if id(buffer) not in known]
        return named | {f"buffer.{i}": buffer for i, buffer in enumerate(others)}

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, as plain values and tensors; not the random streams."""
        return {
            "tensors": self.tensors(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "stopping": None if self.stopping is None else vars(self.stopping),
            "recorder": self.recorder.state(),
            "step": self.step,
            "position": self.position,
            "bad": (self._bad_in_a_row, self._bad_in_epoch),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state` was asked for."""
        restore_tensors(self.tensors(), state["tensors"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.stopping is not None:
            self.stopping = EarlyStopping(**state["stopping"])
        self.recorder = Recorder.restored(state["recorder"])
        self.step, self.position = state["step"], state["position"]
        self._bad_in_a_row, self._bad_in_epoch = state["bad"]
        self._update = make_update(self.optimizer, list(self.parameters.values()))

    def _run_epoch(
        self, batches: Batches, steps: int, validation: Batch | None, save: Callable[[], None]
    ) -> EpochRecord:
        """One pass over the data, or less where the last step comes first."""
        epoch = self._rest_of_epoch(batches)

        def go_on(taken: int) -> None:
            self.position += taken
            if self.position < len(batches) and self.step < steps:
                save()

        while self.step < steps:
            self._take_many_steps(epoch, steps, go_on)
            batch = next(epoch, None) if self.step < steps else None
            if batch is None:
                break
            self._set_weight(self.objective.weight_at(self.step))
            if self.position == 0:
                self._verify(batch)
            self._take_step(batch)
            go_on(1)
        held_out = math.nan if validation is None else self.loss_on(validation)
        held_out = self.ranks.agree(held_out)
        record = self.recorder.close_epoch(self.step, self._bad_in_epoch, held_out)
        self.position = self._bad_in_epoch = 0
        return record

    def _rest_of_epoch(self, batches: Batches) -> Iterator[Batch]:
        """What an interrupted epoch has not seen yet. Batches may draw from the stream when they are made,
        but those that are passed over have done so already."""
        epoch = batches.epoch(len(self.recorder.epochs))
        if self.position:
            with forked_streams():
                next(itertools.islice(epoch, self.position - 1, None))
        return epoch

    def _set_weight(self, weight: float) -> None:
        if weight != self._weight:
            self._weight = weight
            self._kl_weight.fill_(weight)

    def _verify(self, batch: Batch) -> None:
        try:
            self.engine.verify(batch, self._kl_weight)
        except CaptureError as error:
            self._fall_back(error)

    def _fall_back(self, error: CaptureError) -> None:
        logger.warning("this fit runs plain Pyro at every step (engine 'eager'): %s", error)
        self.engine = EagerEngine(self.objective, self.model, self.guide, list(self.parameters.values()))
        self.many_steps = None

    def _gradients(self, batch: Batch) -> Sequence[Tensor]:
        try:
            return self.engine(batch, self._kl_weight)
        except CaptureError as error:
            self._fall_back(error)
            return self.engine(batch, self._kl_weight)

    def _take_many_steps(self, epoch: Iterator[Batch], steps: int, go_on: Callable[[int], None]) -> None:
        """The batches ahead, where many steps per call can be taken on them. The step that may be the last
        bad one is left to :meth:`_take_step`, which can say what broke."""
        if self.many_steps is None or not isinstance(epoch, GatheredEpoch):
            return
        while self._bad_in_a_row < BAD_STEPS_IN_A_ROW - 1:
            rows = self.many_steps.ahead(epoch)[: steps - self.step]
            if not rows.numel():
                return
            batch = epoch.gather(rows[0])
            if self.position == 0 or not self.many_steps.ready_for(batch):
                self._prepare_many_steps(batch)
            if self.many_steps is None:
                return
            taken = self.many_steps.run(rows, self.objective.weight_at, self.step, self._bad_in_a_row)
            if not taken:
                self.many_steps = None
                return
            epoch.skip(len(taken))
            for terms in taken:
                self._note_step(terms, self.count(batch))
            go_on(len(taken))

    def _prepare_many_steps(self, batch: Batch) -> None:
        """At the start of an epoch, of what is left of one, or before a batch of another size: the steps of
        the graph as it is now."""
        self._set_weight(self.objective.weight_at(self.step))
        self._verify(batch)
        try:
            if self.many_steps is not None and not self.many_steps.prepare(batch, self._kl_weight):
                self.many_steps = None
        except CaptureError as error:
            self._fall_back(error)

    def _take_step(self, batch: Batch) -> None:
        """Gradients, guard, clip, update: what is not finite never reaches the parameters."""
        loss, kl, reconstruction, *gradients = self.ranks.total(self._gradients, batch)
        norm = total_norm(gradients).to(loss.dtype)
        terms = torch.stack([loss, kl, reconstruction, norm]).tolist()  # the only look at the device
        if self._note_step(terms, self.ranks.observations(self.count(batch))):
            self._update(clipped(gradients, terms[3], self.max_norm))
            if self.schedule is not None:
                self.schedule.step()
        elif self._bad_in_a_row == BAD_STEPS_IN_A_ROW:
            named = dict(zip(self.parameters, gradients, strict=True))
            raise NonFiniteError(
                f"{BAD_STEPS_IN_A_ROW} steps in a row were not finite; the last good parameters are kept. "
                + explain(self.model, self.guide, batch, named, self.step)
            )

    def _note_step(self, terms: Sequence[float], observations: int) -> bool:
        """Write a step down; whether it was finite."""
        self.recorder.step(terms, observations)
        self.step += 1
        finite = math.isfinite(terms[0]) and math.isfinite(terms[3])
        self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
        self._bad_in_epoch += not finite
        return finite

    def loss_on(self, batch: Batch) -> float:
        """The loss on other data, always from the same noise, in nats per observation, with the KL at full
        weight and layers in evaluation mode."""
        with (
            evaluating(self.model, self.guide),
            torch.no_grad(),
            forked_streams(),
        ):
            torch.manual_seed(VALIDATION_SEED)
            estimate = self.objective.estimate(self.model, self.guide, batch, 1.0)
        return float(estimate.loss) / self.count(batch)


@dataclass
class EarlyStopping:
    """Remembers the best validation loss and its parameters; says when it has not improved for ``patience``
    epochs."""

    patience: int
    best: float = math.inf
    epochs_since: int = 0
    snapshot: dict[str, Tensor] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        return self.epochs_since >= self.patience

    def note(self, validation: float, tensors: dict[str, Tensor]) -> None:
        if validation < self.best:
            self.best, self.epochs_since, self.snapshot = validation, 0, copy_tensors(tensors)
        else:
            self.epochs_since += 1

    def restore_best(self, tensors: dict[str, Tensor]) -> None:
        restore_tensors(tensors, self.snapshot)
