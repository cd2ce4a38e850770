"""Take steps one by one: gradients by Pyro itself, a check that they are finite, the update."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.batches.batches import Batch
from pyro_vae.svi.engines.gradients import gradient_step
from pyro_vae.svi.engines.steps import Ahead, Plan, Taken, Task
from pyro_vae.svi.engines.updates import Update, clipped, make_update, total_norm
from pyro_vae.svi.nonfinite import BAD_STEPS_IN_A_ROW, NonFiniteError, explain

Gradients = Callable[[Batch], Sequence[Tensor]]
"""Loss, KL, reconstruction (totals in nats) and a gradient for each parameter."""


class EagerSteps:
    """Steps one by one, with gradients by Pyro itself. Others that take steps one by one say in
    :meth:`gradients` where theirs come from."""

    name, how = "eager", "runs plain Pyro at every step (engine 'eager')"

    def __init__(self, task: Task) -> None:
        self.task = task
        self._update: Update | None = None

    def gradients(self, batch: Batch) -> Gradients:  # noqa: ARG002
        """What computes the gradients for batches like this one, all that it takes made ready. Raises
        CannotError if there is nothing that does."""
        return self.by_pyro

    def by_pyro(self, batch: Batch) -> Sequence[Tensor]:
        """Compute loss, KL, reconstruction and gradients by Pyro."""
        task = self.task
        return gradient_step(task.objective, task.model, task.guide, task.leaves, batch, task.kl_weight)

    def take(self, ahead: Ahead, plan: Plan) -> Taken:
        """Take one step: gradients, guard, clip, update. What is not finite never reaches the parameters.
        Raises NonFiniteError if it is the third step in a row that is not finite."""
        batch, task = ahead.peek(), self.task
        if batch is None:
            return Taken([], 0)
        task.weigh(plan.step)
        # made ready before ranks exchange anything; an empty share of a batch needs none
        gradients_of = self.gradients(batch) if batch[0].shape[0] else self.by_pyro
        loss, kl, reconstruction, *gradients = task.ranks.total(gradients_of, batch)
        ahead.skip(1)
        norm = total_norm(gradients).to(loss.dtype)
        terms = torch.stack([loss, kl, reconstruction, norm]).tolist()  # the only look at the device
        if math.isfinite(terms[0]) and math.isfinite(terms[3]):
            self._move(clipped(gradients, terms[3], task.max_norm))
        elif plan.bad_in_a_row + 1 == BAD_STEPS_IN_A_ROW:
            named = dict(zip(task.parameters, gradients, strict=True))
            raise NonFiniteError(
                f"{BAD_STEPS_IN_A_ROW} steps in a row were not finite; the last good parameters are kept. "
                + explain(task.model, task.guide, batch, named, plan.step + 1)
            )
        return Taken([terms], task.ranks.observations(task.count(batch)))

    def _move(self, gradients: Sequence[Tensor]) -> None:
        if self._update is None:  # not before a checkpoint was restored, which brings its own state
            self._update = make_update(self.task.optimizer, self.task.leaves)
        self._update(gradients)
        if self.task.schedule is not None:
            self.task.schedule.step()

    def verify(self, batch: Batch, plan: Plan) -> None:
        """Nothing to compare: this is Pyro."""
