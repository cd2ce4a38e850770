"""Take steps one by one, with gradients by the graph that Pyro leaves behind when it runs once."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pyro_vae.batches.batches import Batch
from pyro_vae.devices import forked_streams
from pyro_vae.graphs.guards import Guard
from pyro_vae.graphs.places import blamed
from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.simplification import mutates
from pyro_vae.pairs.isolation import modules_of, untouched_buffers
from pyro_vae.pairs.settings import settings_of
from pyro_vae.svi.engines.cuda import CudaRecorder
from pyro_vae.svi.engines.eager import EagerSteps, Gradients
from pyro_vae.svi.engines.gradients import capture_step
from pyro_vae.svi.engines.steps import CannotError, Plan, Task
from pyro_vae.svi.engines.verification import agree, changed_settings

logger = logging.getLogger(__name__)

STEPS_BETWEEN_VERIFICATIONS = 250
"""A comparison with Pyro costs about four captured steps, so this keeps it below 2 % of the time. Verifying
every epoch would cost half as much as the steps where an epoch has eight."""


class _Captured(NamedTuple):
    graph: fx.GraphModule
    replay: Gradients


class CapturedSteps(EagerSteps):
    """Pyro runs once per signature (shapes, dtypes, training flags); its graph of loss and gradients is
    replayed.

    Parameters
    ----------
    task
        The fit's.
    like
        The steps of an equal pair: its graphs serve here as well, where they give the numbers of this pair.
    """

    name, how = "captured", "takes its steps one by one (engine 'captured')"

    def __init__(self, task: Task, like: "CapturedSteps | None" = None) -> None:
        super().__init__(task)
        self.like = like
        self._modules = [m for root in modules_of(task.model, task.guide) for m in root.modules()]
        self._captured: dict[Any, _Captured] = {}
        self._settings: dict[str, Any] = {}
        self._guard: Guard | None = None
        """What the pair reads besides its tensors, as it was when a graph was last compared with it."""
        self._verified_at = 0
        self._refused: CannotError | None = None

    def gradients(self, batch: Batch) -> Gradients:
        """What replays the graph for batches like this one."""
        return self._captured_for(batch).replay

    def graph(self, batch: Batch) -> fx.GraphModule:
        """The graph for batches like this one, for those who make something else of it. Raises CannotError if
        there is none."""
        return self._captured_for(batch).graph

    @property
    def graphs(self) -> list[fx.GraphModule]:
        """Those of all signatures so far."""
        return [captured.graph for captured in self._captured.values()]

    def verify(self, batch: Batch, plan: Plan, *, every: int = STEPS_BETWEEN_VERIFICATIONS) -> None:
        """Compare the graph with Pyro, if ``every`` steps have passed or something has changed that the pair
        reads: settings of modules, globals, closures, entries of dicts and lists. Capture again where they
        differ."""
        task, known = self.task, self._captured.get(self._signature(batch))
        now = settings_of(task.model, task.guide)
        same = now == self._settings and self._guard is not None and self._guard.holds()
        if known is None or (plan.step - self._verified_at < every and same):
            return
        places = [] if self._guard is None or now != self._settings else self._guard.changed()
        before, self._settings, self._verified_at = self._settings, now, plan.step
        if not same:  # a look around costs as much as three steps
            self._guard = self._looked_at()
        task.weigh(plan.step)
        with task.alone():
            if self._agrees(known.replay, batch, gradients=False):
                return
        what = ", ".join(f"{place.name} has changed" for place in places[:3]) or changed_settings(before, now)
        logger.info("the captured step no longer equals Pyro and is captured again: %s", what)
        self._captured.clear()
        self._captured_for(batch)

    def _signature(self, batch: Batch) -> Any:
        return tuple((x.shape, x.dtype) for x in batch), tuple(module.training for module in self._modules)

    def _captured_for(self, batch: Batch) -> _Captured:
        signature = self._signature(batch)
        known = self._captured.get(signature)
        if known is None:
            if self._refused is not None:
                raise self._refused
            try:
                with self.task.alone(), self.task.ranks.sharing():
                    known = self._taken_over(batch) or self._made(batch)
            except CannotError as refused:
                self._refused = refused
                raise
            self._settings = settings_of(self.task.model, self.task.guide)
            self._guard = self._looked_at()
            self._captured[signature] = known
        return known

    def _looked_at(self) -> Guard:
        objective = self.task.objective
        return Guard([self.task.model, self.task.guide, objective, getattr(objective, "elbo", None)])

    def _taken_over(self, batch: Batch) -> _Captured | None:
        """The graph of an equal pair, if its numbers are those of this one and it changes no tensor: it would
        be one of the other pair."""
        if self.like is None:
            return None
        graph = self.like.graph(batch)
        if any(map(mutates, graph.graph.nodes)):
            return None
        known = self._replayed(graph)
        return known if self._agrees(known.replay, batch, gradients=True) else None

    def _made(self, batch: Batch) -> _Captured:
        task = self.task
        if unseen := self._looked_at().unseen:
            raise CannotError(unseen[0])
        with untouched_buffers(task.model, task.guide), forked_streams(), torch.no_grad():
            # programs that look at the model anew for a batch of a new size do so outside of the graph
            task.objective.estimate(task.model, task.guide, batch, task.kl_weight)
        try:
            graph = capture_step(task.objective, task.model, task.guide, task.leaves, batch, task.kl_weight)
        except Exception as error:  # whatever the user's program does that a tracer cannot follow
            reason, line = str(error).strip().split("\n")[0], blamed(error)
            where = f" ({line})" if line is not None and line not in reason else ""
            raise CannotError(f"tracing it failed with {type(error).__name__}: {reason}{where}") from error
        made = self._replayed(graph)
        if not self._agrees(made.replay, batch, gradients=True):
            raise CannotError(
                "its graph and Pyro give different numbers from the same seed, so it depends on something "
                "outside torch: numpy or Python random numbers, or state that changes at every call"
            )
        return made

    def _replayed(self, graph: fx.GraphModule) -> _Captured:
        code, leaves, kl_weight = make_replay(graph), self.task.leaves, self.task.kl_weight

        def replay(batch: Batch) -> Sequence[Tensor]:
            with torch.no_grad():
                return code(*leaves, kl_weight, *batch)

        return _Captured(graph, replay)

    def _agrees(self, replay: Gradients, batch: Batch, *, gradients: bool) -> bool:
        task = self.task

        @torch.no_grad()
        def loss_by_pyro(batch: Batch) -> Sequence[Tensor]:
            return [task.objective.estimate(task.model, task.guide, batch, task.kl_weight).loss]

        by_pyro = self.by_pyro if gradients else loss_by_pyro
        terms = None if gradients else 1
        with untouched_buffers(task.model, task.guide):
            return agree(lambda: by_pyro(batch), lambda: replay(batch)[:terms])


class RecordedGradients(EagerSteps):
    """The captured graph as one CUDA graph per signature: loss and gradients are a single launch.

    For fits whose whole steps cannot be recorded (:mod:`~pyro_vae.svi.engines.recorded`): other optimizers
    than Adam, loaders, several processes. Parameters keep their addresses for as long as optimizers update
    them in place; the batch is copied into tensors of the graph. What it returns is overwritten by the next
    call.
    """

    name, how = "cuda-graph", "records loss and gradients alone as a CUDA graph"

    def __init__(self, captured: CapturedSteps) -> None:
        super().__init__(captured.task)
        self.captured = captured
        self._recorded: dict[fx.GraphModule, Gradients] = {}

    def gradients(self, batch: Batch) -> Gradients:
        """What starts the recording for batches like this one."""
        graph = self.captured.graph(batch)
        if graph not in self._recorded:
            current = self.captured.graphs
            self._recorded = {
                known: gradients for known, gradients in self._recorded.items() if known in current
            }
            with untouched_buffers(self.task.model, self.task.guide), forked_streams():
                self._recorded[graph] = self._made(graph, batch)
        return self._recorded[graph]

    def verify(self, batch: Batch, plan: Plan) -> None:
        """Compare the graph with Pyro, where that is due."""
        self.captured.verify(batch, plan)

    def _made(self, graph: fx.GraphModule, batch: Batch) -> Gradients:
        leaves, kl_weight = self.task.leaves, self.task.kl_weight
        inside = [x.clone() for x in batch]
        outputs: list[Tensor] = []

        @torch.no_grad()
        def work() -> None:
            outputs[:] = graph(*leaves, kl_weight, *inside)

        start: Callable[[], None] = CudaRecorder(leaves[0].device).record(work)

        def replay(batch: Batch) -> Sequence[Tensor]:
            for place, value in zip(inside, batch, strict=True):
                place.copy_(value)
            start()
            return outputs

        with torch.no_grad():
            if not agree(lambda: graph(*leaves, kl_weight, *batch), lambda: replay(batch)):
                raise CannotError(
                    "its recording gives other numbers than its graph, from the same random stream"
                )
        return replay
