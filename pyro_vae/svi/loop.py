"""Run the epochs of a fit, whoever takes the steps."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor

from pyro_vae.batches.batches import Batch, Batches
from pyro_vae.devices import forked_streams
from pyro_vae.pairs.isolation import evaluating, modules_of
from pyro_vae.pairs.parameters import copy_tensors, named_tensors, restore_tensors
from pyro_vae.svi.engines.steps import Ahead, CannotError, Plan, Steps, Taken, Task
from pyro_vae.svi.engines.updates import restore_optimizer
from pyro_vae.svi.history import EpochRecord, Recorder
from pyro_vae.svi.nonfinite import NonFiniteError

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

VALIDATION_SEED = 7_368_787
"""Validation draws the same noise at every epoch, so that two epochs differ by the parameters alone."""


@dataclass
class Loop:
    """Where a fit stands, and how it goes on."""

    task: Task
    chain: list[Steps]
    """The kinds of steps to take, the fastest first. What cannot go on leaves the chain for good."""
    by_name: bool = False
    """Whether somebody asked for the first kind: then the log is louder when another takes over."""
    stopping: "EarlyStopping | None" = None
    step: int = 0
    position: int = 0
    """Batches of the running epoch that are done."""
    recorder: Recorder = field(default_factory=Recorder)
    _bad_in_a_row: int = 0
    _bad_in_epoch: int = 0

    def run(
        self,
        batches: Batches,
        steps: int,
        validation: Batch | None = None,
        callbacks: Sequence[Callable[[EpochRecord], None]] = (),
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Run epochs until ``steps`` are taken or the validation loss no longer improves.

        ``save`` is called wherever :meth:`state` is whole: after a step, and after an epoch with its
        callbacks.

        Raises ValueError if a callback freezes parameters or trains others: optimizer and engines hold those
        of the start.
        """
        known = [(name, tensor, tensor.requires_grad) for name, tensor in self.tensors().items()]
        while self.step < steps and not (self.stopping is not None and self.stopping.exhausted):
            record = self._run_epoch(batches, steps, validation, save)
            for callback in callbacks:
                callback(record)
            for name, tensor, trained in known:
                if tensor.requires_grad is not trained:
                    raise ValueError(
                        f"a callback changed whether '{_shown(name)}' requires a gradient; make a "
                        "fit of each stage: fit(f.model, f.guide, ...) goes on where f ended"
                    )
            if self.stopping is not None:
                self.stopping.note(record.validation, self.tensors())
            save()
        if self.step and self._bad_in_a_row == self.step:
            raise NonFiniteError(
                f"none of the steps was finite ({self.step}), and the parameters are those of the start; try "
                "a smaller lr, data scaled to unit size (counts: by log1p in the encoder), or other starting "
                "values"
            )

    @property
    def engine(self) -> str:
        """The name of what takes the steps by now."""
        return self.chain[0].name

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, persistent or not, which early stopping takes back together; of modules
        that plain functions call, too."""
        model, guide = self.task.model, self.task.guide
        named = named_tensors(model, guide, pyro.get_param_store().get_state())
        known = {id(tensor) for tensor in named.values()}
        modules = [*modules_of(model, guide), *self.task.called]
        buffers = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        others = [buffer for key, buffer in buffers.items() if key not in known]
        return named | {f"buffer.{i}": buffer for i, buffer in enumerate(others)}

    def state(self) -> dict[str, Any]:
        """Everything that later steps depend on, as plain values and tensors; not the random streams."""
        schedule = self.task.schedule
        return {
            "tensors": self.tensors(),
            "optimizer": self.task.optimizer.state_dict(),
            "schedule": None if schedule is None else schedule.state_dict(),
            "stopping": None if self.stopping is None else vars(self.stopping),
            "recorder": self.recorder.state(),
            "step": self.step,
            "position": self.position,
            "bad": (self._bad_in_a_row, self._bad_in_epoch),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state` was asked for. Call it before the first step."""
        restore_tensors(self.tensors(), state["tensors"])
        restore_optimizer(self.task.optimizer, state["optimizer"])
        if self.task.schedule is not None:
            self.task.schedule.load_state_dict(state["schedule"])
        if self.stopping is not None:
            self.stopping = EarlyStopping(**state["stopping"])
        self.recorder = Recorder.restored(state["recorder"])
        self.step, self.position = state["step"], state["position"]
        self._bad_in_a_row, self._bad_in_epoch = state["bad"]

    def _run_epoch(
        self, batches: Batches, steps: int, validation: Batch | None, save: Callable[[], None]
    ) -> EpochRecord:
        """One pass over the data, or less where the last step comes first."""
        ahead = self._rest_of_epoch(batches)
        if self.position == 0 and (first := ahead.peek()) is not None:
            self._go_on(lambda: self.chain[0].verify(first, Plan(self.step)))
        while self.step < steps:
            plan = Plan(self.step, steps - self.step, self._bad_in_a_row)
            taken = self._go_on(lambda: self.chain[0].take(ahead, plan))  # noqa: B023 - called at once
            if not taken.terms:
                break
            self._note(taken)
            if self.position < len(batches) and self.step < steps:
                save()
        held_out = math.nan if validation is None else self.loss_on(validation)
        held_out = self.task.ranks.agree(held_out)
        record = self.recorder.close_epoch(self.step, self._bad_in_epoch, held_out)
        self.position = self._bad_in_epoch = 0
        return record

    def _rest_of_epoch(self, batches: Batches) -> Ahead:
        """What an interrupted epoch has not seen yet. Batches may draw from the stream when they are made,
        but those that are passed over have done so already."""
        ahead = Ahead(batches.epoch(len(self.recorder.epochs)))
        if self.position:
            with forked_streams():
                ahead.skip(self.position)
        return ahead

    def _go_on(self, do: Callable[[], Result]) -> Result:
        """What the first of the chain can do; those that cannot are left behind."""
        reason: CannotError | None = None
        while True:
            try:
                done = do()
            except CannotError as refused:
                if len(self.chain) == 1:
                    raise
                reason = refused
                del self.chain[0]
            else:
                if reason is not None:
                    loud = self.by_name or len(self.chain) == 1
                    level = logging.WARNING if loud else logging.INFO
                    logger.log(level, "this fit %s: %s", self.chain[0].how, reason)
                return done

    def _note(self, taken: Taken) -> None:
        """Write down the steps that were taken."""
        # Autocast keeps its casts of weights until the user's block ends, and the steps have moved them.
        torch.clear_autocast_cache()
        for terms in taken.terms:
            self.recorder.step(terms, taken.observations)
            bad = not (math.isfinite(terms[0]) and math.isfinite(terms[3]))
            self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
            self._bad_in_epoch += bad
        self.step += len(taken.terms)
        self.position += len(taken.terms)

    def loss_on(self, batch: Batch) -> float:
        """The loss on other data, always from the same noise, in nats per observation, with the KL at full
        weight and layers in evaluation mode."""
        task = self.task
        with (
            evaluating(task.model, task.guide),
            torch.no_grad(),
            forked_streams(),
        ):
            torch.manual_seed(VALIDATION_SEED)
            estimate = task.objective.estimate(task.model, task.guide, batch, 1.0)
        return float(estimate.loss) / task.count(batch)


def _shown(name: str) -> str:
    """A parameter's name as its user writes it: Pyro's store writes ``module$$$weight``."""
    return name.removeprefix("store.").replace("$$$", ".")


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
