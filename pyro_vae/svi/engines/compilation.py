"""Captured steps that torch compiles, or records as a CUDA graph."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pyro_vae.graphs.compilation import compiled
from pyro_vae.svi.engines.captured import CapturedEngine
from pyro_vae.svi.engines.cuda import CudaRecorder
from pyro_vae.svi.engines.verification import agree

__all__ = ["CudaGraphEngine", "InductorEngine"]

logger = logging.getLogger(__name__)


class _CompiledEngine(CapturedEngine):
    """A captured engine that makes more of its graph, where that works."""

    def _made_ready(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        if self.name != CapturedEngine.name:
            try:
                return self._checked(self._compiled(graph, inputs), graph, inputs)
            except Exception as error:  # no C++ compiler, an operation that cannot be recorded, ...
                reason = str(error).strip().split("\n")[0]
                logger.warning(
                    "this fit replays its graph as it is (engine 'captured'): %s: %s",
                    type(error).__name__,
                    reason,
                )
                self.name = CapturedEngine.name
        return super()._made_ready(graph, inputs)

    def _compiled(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        raise NotImplementedError

    @staticmethod
    def _checked(
        made: Callable[..., Sequence[Tensor]], graph: fx.GraphModule, inputs: Sequence[Tensor]
    ) -> Callable[..., Sequence[Tensor]]:
        """The compiled step, if it has the numbers of the graph from the same random stream."""
        with torch.no_grad():
            if not agree(lambda: graph.forward(*inputs), lambda: made(*inputs)):
                raise ValueError("it gives other numbers than uncompiled, from the same random stream")
        return made


class InductorEngine(_CompiledEngine):
    """The captured graph, compiled by ``torch._inductor`` for the first batch's shapes.

    The build takes 10 to 15 seconds, a few once torch's own cache on disk knows the graph. Other shapes (the
    smaller last batch of an epoch) are replayed uncompiled. Random numbers are drawn by torch's kernels from
    torch's stream, so the numbers are those of the other engines up to rounding, and verification holds.
    """

    name = "inductor"

    def _compiled(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        if self.graphs:
            replay: Callable[..., Sequence[Tensor]] = graph.forward
            return replay
        return compiled(graph, inputs)


class CudaGraphEngine(_CompiledEngine):
    """The captured graph, recorded as one CUDA graph per signature: loss and gradients are a single launch.

    For fits whose whole steps cannot be recorded (:mod:`~pyro_vae.svi.engines.recorded`): other optimizers
    than Adam, loaders, several processes. Parameters keep their addresses for as long as optimizers update
    them in place; the batch and the KL's weight are copied into tensors of the graph. What it returns is
    overwritten by the next call.
    """

    name = "cuda-graph"

    def _compiled(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        count = len(self.parameters)
        inside = [x.clone() for x in inputs[count:]]
        outputs: list[Tensor] = []

        @torch.no_grad()
        def work() -> None:
            outputs[:] = graph.forward(*inputs[:count], *inside)

        replay = CudaRecorder(inputs[-1].device).record(work)

        def step(*given: Tensor) -> Sequence[Tensor]:
            for place, value in zip(inside, given[count:], strict=True):
                place.copy_(value)
            replay()
            return outputs

        return step
