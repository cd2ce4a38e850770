"""Many steps per call: how a fit takes whole steps, where it can and where that pays."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, fx
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.batches.batches import Batch, GatheredEpoch
from pyro_vae.pairs.isolation import untouched_buffers
from pyro_vae.svi.engines.captured import CapturedEngine
from pyro_vae.svi.engines.native.build import BuildError, has_compiler
from pyro_vae.svi.engines.rates import RatesAhead
from pyro_vae.svi.engines.steps import Steps, UnsupportedError
from pyro_vae.svi.engines.trial import gives

__all__ = ["Maker", "ManySteps", "build_pays", "log_captured"]

logger = logging.getLogger(__name__)

BUILD_SECONDS = 2.0
SAVED_PER_STEP, SAVED_PER_FLOP = 0.3e-3, 1e-12
"""Seconds, on the low side of what was measured (``benchmarks/results/cpu.md``)."""

STEPS_BETWEEN_VERIFICATIONS = 2000
"""A comparison with Pyro costs some thirty native steps, so this keeps it below 2 % of the time on a CPU."""


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


class Maker(Protocol):
    """Makes steps of one kind from a captured graph."""

    @property
    def name(self) -> str:
        """Of the engine."""

    @property
    def most(self) -> int:
        """So many may be made in a fit."""

    @property
    def any_size(self) -> bool:
        """Whether the smaller last batch of an epoch is worth steps of its own."""

    def __call__(self, graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Batch) -> Steps:
        """Steps for batches like this one. Raises UnsupportedError or BuildError where there can be none."""


class ManySteps:
    """The whole steps of a fit's captured graph: made, checked, and taken with the fit's schedule.

    Parameters
    ----------
    engine
        Whose graph it is; it takes the steps that are taken one by one.
    make
        The kind of steps.
    optimizer, schedule
        Of the fit. Between two calls the optimizer's state is what its own steps would have left.
    data
        The tensors that batches are gathered from.
    by_name
        Whether the user asked for this kind of steps.
    """

    def __init__(
        self,
        engine: CapturedEngine,
        make: Maker,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        data: Sequence[Tensor],
        *,
        by_name: bool,
    ) -> None:
        self.engine, self.make, self.data, self.by_name = engine, make, data, by_name
        self.rates = None if schedule is None else RatesAhead(optimizer, schedule)
        self._steps: Steps | None = None
        self._made: dict[int, tuple[fx.GraphModule, Steps]] = {}
        self._count = 0

    @property
    def name(self) -> str:
        """Of the engine."""
        return self.make.name

    def ahead(self, epoch: GatheredEpoch) -> Tensor:
        """The rows of the next batches that such steps can be taken on: (batches, batch size)."""
        full = epoch.full_batches()
        return epoch.rest() if self.make.any_size and not len(full) else full

    def ready_for(self, batch: Batch) -> bool:
        """Whether the steps at hand are for batches of this size."""
        return self._steps is not None and self._steps.batch_size == len(batch[0])

    def prepare(self, batch: Batch, kl_weight: Tensor) -> bool:
        """Have the steps at hand that the engine's graph of such a batch now asks for; whether there are any.

        Raises CaptureError if there is no graph.
        """
        graph = self.engine.graph(batch, kl_weight)
        known, steps = self._made.get(len(batch[0]), (None, None))
        if known is not graph:
            try:
                steps = self._making(graph, batch)
            except (UnsupportedError, BuildError) as error:
                self._drop(str(error))
                return False
            self._made[len(batch[0])] = graph, steps
        self._steps = steps
        return True

    def _making(self, graph: fx.GraphModule, batch: Batch) -> Steps:
        if self._count == self.make.most:
            raise UnsupportedError(f"its graph has changed {self.make.most} times")
        self._count += 1
        steps = self.make(graph, self.engine.parameters, batch)
        with untouched_buffers(self.engine.eager.model, self.engine.eager.guide):
            same = gives(steps, self.data, lambda weight, batch: self._by_graph(graph, weight, batch))
        if not same:
            raise UnsupportedError("it gives other numbers than its graph, from the same random stream")
        self.engine.steps_between = STEPS_BETWEEN_VERIFICATIONS
        return steps

    @torch.no_grad()
    def _by_graph(self, graph: fx.GraphModule, kl_weight: Tensor, batch: Batch) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = graph(*self.engine.parameters, kl_weight, *batch)
        return outputs

    def _drop(self, reason: str) -> None:
        log_captured(reason, by_name=self.by_name)
        self._steps = None
        self._made.clear()
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
        assert self._steps is not None
        rows = rows[: self._steps.steps_per_call]
        weights = torch.tensor([weight_at(step + i) for i in range(len(rows))], dtype=torch.float64)
        try:
            rates = None if self.rates is None else self.rates.take(len(rows))
        except ValueError as error:
            self._drop(str(error))
            return []
        self._steps.bad_in_a_row = bad_in_a_row
        terms = self._steps.run(self.data, rows, weights, rates)
        if self.rates is not None:
            self.rates.keep(int((~terms.bad).sum()))
        self.engine.steps_unverified += len(terms.bad)
        return torch.stack(terms[:4], 1).tolist()
