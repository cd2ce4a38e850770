"""How a step's loss and gradients are computed: by Pyro itself, or by the graph that Pyro left behind."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from pyro_vae.batches.batches import Batch
from pyro_vae.devices import forked_streams
from pyro_vae.graphs.replay import make_replay
from pyro_vae.pairs.isolation import Program, modules_of, untouched_buffers
from pyro_vae.svi.engines.gradients import capture_step, gradient_step
from pyro_vae.svi.engines.verification import agree, changed_settings, settings_of
from pyro_vae.svi.objectives.elbo import Objective

__all__ = ["ENGINES", "CaptureError", "CapturedEngine", "EagerEngine", "Engine"]

ENGINES = ("auto", "captured", "cuda-graph", "eager", "inductor", "native")
logger = logging.getLogger(__name__)

STEPS_BETWEEN_VERIFICATIONS = 250
"""A comparison with Pyro costs about four captured steps, so this keeps it below 2 % of the time. Verifying
every epoch would cost half as much as the steps where an epoch has eight."""


class CaptureError(Exception):
    """This pair cannot be replayed as a graph; the message says why."""


class Engine(Protocol):
    """``engine(batch, kl_weight)`` returns loss, KL, reconstruction (totals in nats) and a gradient for each
    parameter."""

    name: str

    def __call__(self, batch: Batch, kl_weight: Tensor) -> Sequence[Tensor]: ...

    def verify(self, batch: Batch, kl_weight: Tensor) -> None:
        """Called once per epoch: compare with Pyro, when that is due. Raises CaptureError if the two cannot
        be brought together."""


class EagerEngine:
    """Plain Pyro: the pair runs at every step."""

    name = "eager"

    def __init__(
        self, objective: Objective, model: Program, guide: Program, parameters: Sequence[Tensor]
    ) -> None:
        self.objective, self.model, self.guide, self.parameters = objective, model, guide, list(parameters)

    def __call__(self, batch: Batch, kl_weight: Tensor) -> Sequence[Tensor]:
        return gradient_step(self.objective, self.model, self.guide, self.parameters, batch, kl_weight)

    def verify(self, batch: Batch, kl_weight: Tensor) -> None:
        """Nothing to compare: this is Pyro."""


class CapturedEngine:
    """Pyro runs once per signature (shapes, dtypes, training flags); its graph of loss and gradients is
    replayed."""

    name = "captured"
    steps_between = STEPS_BETWEEN_VERIFICATIONS

    def __init__(
        self, objective: Objective, model: Program, guide: Program, parameters: Sequence[Tensor]
    ) -> None:
        self.eager = EagerEngine(objective, model, guide, parameters)
        self.parameters = list(parameters)
        self.modules = [module for root in modules_of(model, guide) for module in root.modules()]
        self.graphs: dict[Any, Callable[..., Sequence[Tensor]]] = {}
        self.captured: dict[Any, fx.GraphModule] = {}
        self.settings: dict[str, Any] = {}
        self.steps_unverified = 0

    def __call__(self, batch: Batch, kl_weight: Tensor) -> Sequence[Tensor]:
        self.steps_unverified += 1
        graph = self.graphs.get(self._signature(batch))
        if graph is None:
            graph = self._build(batch, kl_weight)
        with torch.no_grad():
            return graph(*self.parameters, kl_weight, *batch)

    def graph(self, batch: Batch, kl_weight: Tensor) -> fx.GraphModule:
        """The graph for batches like this one, for those who make something else of it."""
        signature = self._signature(batch)
        if signature not in self.captured:
            self._build(batch, kl_weight)
        return self.captured[signature]

    def verify(self, batch: Batch, kl_weight: Tensor) -> None:
        """Compare the graph with Pyro, if a plain setting of the modules has changed or enough steps have
        passed, and capture again where they differ."""
        graph = self.graphs.get(self._signature(batch))
        now = settings_of(self.eager.model, self.eager.guide)
        due = self.steps_unverified >= self.steps_between or now != self.settings
        if graph is None or not due:
            return
        before, self.settings, self.steps_unverified = self.settings, now, 0
        if self._agrees(graph, batch, kl_weight, gradients=False):
            return
        logger.info(
            "the captured step no longer equals Pyro and is captured again: %s", changed_settings(before, now)
        )
        self.graphs.clear()
        self.captured.clear()
        self._build(batch, kl_weight)

    def _signature(self, batch: Batch) -> Any:
        return tuple((x.shape, x.dtype) for x in batch), tuple(module.training for module in self.modules)

    def _build(self, batch: Batch, kl_weight: Tensor) -> Callable[..., Sequence[Tensor]]:
        eager = self.eager
        self._run_once(batch, kl_weight)
        try:
            captured = capture_step(
                eager.objective, eager.model, eager.guide, self.parameters, batch, kl_weight
            )
        except Exception as error:  # whatever the user's program does that a tracer cannot follow
            reason = str(error).strip().split("\n")[0]
            raise CaptureError(f"tracing it failed with {type(error).__name__}: {reason}") from error
        with untouched_buffers(eager.model, eager.guide), forked_streams():
            graph = self._made_ready(captured, [*self.parameters, kl_weight, *batch])
        if not self._agrees(graph, batch, kl_weight, gradients=True):
            raise CaptureError(
                "its graph and Pyro give different numbers from the same seed, so it depends on something "
                "outside torch: numpy or Python random numbers, or state that changes at every call"
            )
        self.settings = settings_of(eager.model, eager.guide)
        signature = self._signature(batch)
        self.graphs[signature], self.captured[signature] = graph, captured
        return graph

    def _made_ready(
        self,
        graph: fx.GraphModule,
        inputs: Sequence[Tensor],  # noqa: ARG002
    ) -> Callable[..., Sequence[Tensor]]:
        """What replays the graph: here its own Python code. ``inputs`` are an example."""
        return make_replay(graph)

    def _run_once(self, batch: Batch, kl_weight: Tensor) -> None:
        """Let programs that look at the model anew for a batch of a new size do so outside of the graph."""
        eager = self.eager
        with untouched_buffers(eager.model, eager.guide), forked_streams(), torch.no_grad():
            eager.objective.estimate(eager.model, eager.guide, batch, kl_weight)

    def _agrees(
        self, graph: Callable[..., Sequence[Tensor]], batch: Batch, kl_weight: Tensor, *, gradients: bool
    ) -> bool:
        def by_pyro() -> Sequence[Tensor]:
            if gradients:
                return self.eager(batch, kl_weight)
            with torch.no_grad():
                return [
                    self.eager.objective.estimate(self.eager.model, self.eager.guide, batch, kl_weight).loss
                ]

        def by_graph() -> Sequence[Tensor]:
            with torch.no_grad():
                outputs = graph(*self.parameters, kl_weight, *batch)
            return outputs if gradients else outputs[:1]

        with untouched_buffers(self.eager.model, self.eager.guide):
            return agree(by_pyro, by_graph)
