"""Take many whole steps per call, by functions that are made from the captured graph."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, fx

from pyro_vae.batches.batches import Batch
from pyro_vae.pairs.isolation import untouched_buffers
from pyro_vae.svi.engines.captured import CapturedSteps
from pyro_vae.svi.engines.cuda import CudaRecorder
from pyro_vae.svi.engines.functions import StepFunction, agrees_with
from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.engines.optimizers import RatesAhead
from pyro_vae.svi.engines.recorded import RecordedFunction
from pyro_vae.svi.engines.steps import Ahead, CannotError, Plan, Taken
from pyro_vae.svi.nonfinite import BAD_STEPS_IN_A_ROW

STEPS_BETWEEN_VERIFICATIONS = 2000
"""A comparison with Pyro costs some thirty native steps, so this keeps it below 2 % of the time on a CPU."""

MOST_BUILDS, MOST_RECORDINGS = 3, 20
"""A program that needs more changes all the time, and they take longer than they are good for."""

MOST_BAD = BAD_STEPS_IN_A_ROW - 1
"""The step that may be the last is taken alone, by the captured steps, which can say what broke."""


class ManySteps:
    """Whole steps on tensors, as many as a call takes; with the fit's schedule, and checked against the graph
    before the first is taken. What is left over (a smaller last batch, a step that may end the fit) is taken
    by the captured steps whose graph it is.

    Parameters
    ----------
    captured
        Those steps.
    """

    name: str
    how: str
    most_functions: int
    """More of them are not made in a fit."""
    any_size: bool
    """Whether the smaller last batch of an epoch is worth a function of its own."""
    most_bad = MOST_BAD

    def __init__(self, captured: CapturedSteps) -> None:
        self.captured, self.task = captured, captured.task
        optimizer, schedule = self.task.optimizer, self.task.schedule
        self._rates = None if schedule is None else RatesAhead(optimizer, schedule)
        self._functions: dict[int, tuple[fx.GraphModule, StepFunction]] = {}
        self._made = 0

    def take(self, ahead: Ahead, plan: Plan) -> Taken:
        """Take the steps of one call."""
        task, tensors = self.task, ahead.tensors
        if task.ranks.size > 1:
            raise CannotError("its gradients are summed over processes")
        if tensors is None:
            raise CannotError("its batches come from a loader, and are not gathered from tensors")
        rows = ahead.rows(any_size=self.any_size)[: plan.most]
        if not rows.numel() or plan.bad_in_a_row >= self.most_bad:
            return self.take_one(ahead, plan)
        size = rows.shape[1]
        task.weigh(plan.step)
        self.make_ready(tensors, [size])
        function = self._functions[size][1]
        rows = rows[: function.steps_per_call]
        weights = [task.objective.weight_at(plan.step + i) for i in range(len(rows))]
        terms = function.run(
            tensors,
            rows,
            torch.tensor(weights, dtype=torch.float64),
            None if self._rates is None else self._rates.take(len(rows)),
            bad_in_a_row=plan.bad_in_a_row,
        )
        if self._rates is not None:
            self._rates.keep(int((~terms.bad).sum()))
        ahead.skip(len(terms.bad))
        return Taken(torch.stack(terms[:4], 1).tolist(), task.count((rows[0],)))

    def take_one(self, ahead: Ahead, plan: Plan) -> Taken:
        """Take a step that is not one of many."""
        return self.captured.take(ahead, plan)

    def verify(self, batch: Batch, plan: Plan) -> None:
        """Compare the graph with Pyro, where that is due."""
        self.captured.verify(batch, plan, every=STEPS_BETWEEN_VERIFICATIONS)

    def make_ready(self, tensors: Batch, sizes: Sequence[int]) -> None:
        """Have a function for batches of each of these sizes, made from the graph as it is now and compared
        with it. Raises CannotError if there cannot be one, or its numbers are not the graph's."""
        batches = {size: tuple(x[:size] for x in tensors) for size in sizes}
        graphs = {size: self.captured.graph(batch) for size, batch in batches.items()}
        new = [size for size in sizes if self._functions.get(size, (None, None))[0] is not graphs[size]]
        if not new:
            return
        self._made += len(new)
        if self._made > self.most_functions:
            raise CannotError(f"its graph has changed {self.most_functions} times")
        if len(new) == 1:
            functions = [self.make(graphs[new[0]], batches[new[0]])]
        else:
            with ThreadPoolExecutor(len(new)) as compilers:
                functions = [*compilers.map(lambda size: self.make(graphs[size], batches[size]), new)]
        for size, function in zip(new, functions, strict=True):
            with self.task.alone(), untouched_buffers(self.task.model, self.task.guide):
                same = agrees_with(lambda *given: self._by(graphs[size], *given), function, tensors)  # noqa: B023
            if not same:
                raise CannotError("it gives other numbers than its graph, from the same random stream")
            self._functions[size] = graphs[size], function

    def make(self, graph: fx.GraphModule, batch: Batch) -> StepFunction:
        """Make the function for batches like this one. Raises CannotError if there cannot be one."""
        raise NotImplementedError

    @torch.no_grad()
    def _by(self, graph: fx.GraphModule, kl_weight: Tensor, batch: Batch) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = graph(*self.task.leaves, kl_weight, *batch)
        return outputs


class NativeSteps(ManySteps):
    """Steps by one C++ function."""

    name, how = "native", "takes whole steps in C++ (engine 'native')"
    most_functions, any_size = MOST_BUILDS, False

    def make(self, graph: fx.GraphModule, batch: Batch) -> StepFunction:
        """Compile the function."""
        task = self.task
        return NativeFunction(
            graph, task.leaves, batch, task.optimizer, max_norm=task.max_norm, most_bad=self.most_bad
        )


class RecordedSteps(ManySteps):
    """Steps that a CUDA device repeats by itself.

    Parameters
    ----------
    captured
        As for :class:`ManySteps`.
    fuse
        Whether the fit is long enough for a compiler.
    """

    name, how = "cuda-graph", "records whole steps as a CUDA graph"
    most_functions, any_size = MOST_RECORDINGS, True

    def __init__(self, captured: CapturedSteps, *, fuse: bool) -> None:
        super().__init__(captured)
        self.fuse = fuse

    def make(self, graph: fx.GraphModule, batch: Batch) -> StepFunction:
        """Make the function, which is recorded when it is first called."""
        task = self.task
        return RecordedFunction(
            graph,
            task.leaves,
            batch,
            task.optimizer,
            CudaRecorder(task.device),
            max_norm=task.max_norm,
            most_bad=self.most_bad,
            fuse=self.fuse,
        )
