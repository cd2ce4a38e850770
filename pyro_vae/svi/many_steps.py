"""Many steps per call: how a fit uses the native function, where it can and where that pays."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.svi.batches import Batch
from pyro_vae.svi.engines import CapturedEngine
from pyro_vae.svi.native import BuildError, NativeSteps, UnsupportedError, gives, is_faster
from pyro_vae.svi.native.build import has_compiler
from pyro_vae.svi.rates import RatesAhead

__all__ = ["ManySteps", "build_pays", "log_captured"]

logger = logging.getLogger(__name__)

BUILD_SECONDS = 3.0
SAVED_PER_STEP, SAVED_PER_FLOP = 0.5e-3, 3e-12
"""Seconds, on the low side of what was measured (``benchmarks/results/cpu.md``)."""

STEPS_BETWEEN_VERIFICATIONS = 2000
"""A comparison with Pyro costs some thirty native steps, so this keeps it below 2 % of the time."""

MOST_BUILDS = 3
"""In a fit. A program that needs more changes all the time, and a build takes longer than it is good for."""


def build_pays(steps: int, flops: float = 0.0) -> bool:
    """Whether there is a compiler, and so many native steps save more time than their build takes.

    By counting and not by the clock: the same fit always gets the same engine, and so gives the same bits.

    Parameters
    ----------
    steps
        That will be taken with one build.
    flops
        Floating-point operations of a step.

    Examples
    --------
    >>> build_pays(1000)
    False
    """
    return steps * (SAVED_PER_STEP + SAVED_PER_FLOP * flops) > BUILD_SECONDS and has_compiler()


def log_captured(reason: str, *, by_name: bool) -> None:
    """Say why a fit has no native steps: louder if somebody asked for them."""
    level = logging.WARNING if by_name else logging.INFO
    logger.log(level, "this fit takes its steps one by one (engine 'captured'): %s", reason)


class ManySteps:
    """The native function of a fit's captured graph: built, checked, and stepped with its schedule.

    Parameters
    ----------
    engine
        Whose graph becomes native; it takes the steps that are not.
    optimizer, schedule, max_norm
        Of the fit. Between two calls the optimizer's state is what its own steps would have left.
    data
        The tensors that batches are gathered from.
    most_bad
        A call ends after so many steps in a row that were not finite.
    by_name
        Whether the user asked for native steps; otherwise they must also be faster than the graph's.
    """

    def __init__(
        self,
        engine: CapturedEngine,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        max_norm: float | None,
        data: Sequence[Tensor],
        *,
        most_bad: int,
        by_name: bool,
    ) -> None:
        self.engine, self.optimizer, self.max_norm = engine, optimizer, max_norm
        self.data, self.most_bad, self.by_name = data, most_bad, by_name
        self.rates = None if schedule is None else RatesAhead(optimizer, schedule)
        self.native: NativeSteps | None = None
        self._graph: fx.GraphModule | None = None
        self._builds = 0

    def prepare(self, batch: Batch, kl_weight: Tensor) -> bool:
        """Make the function for such batches that the engine's graph now asks for; whether there is one.

        Raises CaptureError if there is no graph.
        """
        graph = self.engine.graph(batch, kl_weight)
        if graph is not self._graph:
            self._graph, self.native = graph, None
            try:
                self.native = self._built(graph, batch)
            except (UnsupportedError, BuildError) as error:
                self._drop(str(error))
        return self.native is not None

    def _built(self, graph: fx.GraphModule, batch: Batch) -> NativeSteps:
        if self._builds == MOST_BUILDS:
            raise UnsupportedError(f"its graph has changed {MOST_BUILDS} times")
        self._builds += 1
        parameters = self.engine.parameters
        native = NativeSteps(
            graph, parameters, batch, self.optimizer, max_norm=self.max_norm, most_bad=self.most_bad
        )
        if not gives(native, self.data, lambda weight, batch: self._by_graph(graph, weight, batch)):
            raise UnsupportedError("it gives other numbers than its graph, from the same random stream")
        if not self.by_name and not is_faster(native, graph, self.data):
            raise UnsupportedError("it is slower on this machine")
        self.engine.steps_between = STEPS_BETWEEN_VERIFICATIONS
        return native

    @torch.no_grad()
    def _by_graph(self, graph: fx.GraphModule, kl_weight: Tensor, batch: Batch) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = graph(*self.engine.parameters, kl_weight, *batch)
        return outputs

    def _drop(self, reason: str) -> None:
        log_captured(reason, by_name=self.by_name)
        self.native = None
        self.engine.steps_between = CapturedEngine.steps_between

    def run(
        self, rows: Tensor, weight_at: Callable[[int], float], step: int, bad_in_a_row: int
    ) -> list[list[float]]:
        """One call: loss, KL, reconstruction and gradient norm of each step that it took; none if the
        schedule asks for more than other learning rates.

        Parameters
        ----------
        rows
            (steps, batch size): of the next batches, as many as one would like to take.
        weight_at
            The weight of the KL at a step.
        step, bad_in_a_row
            Steps before these, and how many of the last were not finite.
        """
        assert self.native is not None
        rows = rows[: self.native.steps_per_call]
        weights = torch.tensor([weight_at(step + i) for i in range(len(rows))], dtype=torch.float64)
        try:
            rates = None if self.rates is None else self.rates.take(len(rows))
        except ValueError as error:
            self._drop(str(error))
            return []
        self.native.bad_in_a_row = bad_in_a_row
        terms = self.native.run(self.data, rows, weights, rates)
        if self.rates is not None:
            self.rates.keep(int((~terms.bad).sum()))
        self.engine.steps_unverified += len(terms.bad)
        return torch.stack(terms[:4], 1).tolist()
