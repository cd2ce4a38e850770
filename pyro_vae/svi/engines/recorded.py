"""Take whole steps as tensor operations on fixed memory, which a device records once and repeats by
itself."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, fx
from torch.optim import Optimizer

from pyro_vae.devices import forked_streams
from pyro_vae.graphs.compilation import compiled
from pyro_vae.graphs.simplification import mutates
from pyro_vae.graphs.tracing import capture
from pyro_vae.svi.engines.functions import StepTerms
from pyro_vae.svi.engines.optimizers import constant_rates
from pyro_vae.svi.engines.steps import CannotError
from pyro_vae.svi.engines.updates import guarded_adam, total_norm

logger = logging.getLogger(__name__)

STEPS_PER_CALL = 100
"""The host looks at the device once per call, and Python handles an interrupt only between calls."""


TOGETHER = (10, 1)
"""Steps that are started as one, for between two starts the device waits; and the rest one by one."""


class WorkRecorder(Protocol):
    """What a device offers for repeating work without the host
    (:class:`~pyro_vae.svi.engines.cuda.CudaRecorder`)."""

    generator: torch.Generator
    """Whose noise the recorded work draws."""

    def record(self, work: Callable[[], None], together: int = 1) -> Callable[[], None]:
        """What repeats the tensor operations of ``work`` on the same memory, ``together`` times at one start.
        ``work`` itself is run a few times before, and its effects are kept."""

    def rewind(self, before: Tensor, ran: int, asked: int) -> None:
        """Set the stream to where it was after ``ran`` of the ``asked`` repetitions since ``before``."""


class RecordedFunction:
    """Steps of Adam that a device takes without being told each operation again.

    A step gathers its rows of the data, computes loss and gradients by the graph, measures and clips the
    gradient and moves the parameters, all on the device. What differs from step to step (rows, weight of the
    KL, learning rates) lies in tables there, and the step counts for itself where it is. So the host starts
    one recording per step, and looks at the results once per call. A step whose loss or gradient is not
    finite changes no parameter and is counted; after ``most_bad`` of them in a row the rest of a call does
    nothing. The optimizer's state is the one that its own steps would have left. Raises CannotError if the
    optimizer is another one.

    Parameters
    ----------
    graph
        What :func:`~pyro_vae.svi.engines.gradients.capture_step` returns.
    parameters
        The graph's leading inputs.
    batch
        The graph's last inputs, for their shapes: the recording is for batches of this size alone.
    optimizer
        ``torch.optim.Adam(…, fused=True)`` over these parameters, without amsgrad or hooks.
    recorder
        Of the device that all tensors are on.
    max_norm
        Clips the norm of the whole gradient.
    most_bad
        This number of steps in a row that are not finite ends a call.
    fuse
        Compile what a step computes by inductor, which makes few kernels of many small ones; takes ten to
        thirty seconds.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        parameters: Sequence[Tensor],
        batch: Sequence[Tensor],
        optimizer: Optimizer,
        recorder: WorkRecorder,
        *,
        max_norm: float | None = None,
        most_bad: int = 3,
        fuse: bool = False,
    ) -> None:
        self.graph, self.parameters, self.optimizer = graph, list(parameters), optimizer
        self.recorder, self.generator = recorder, recorder.generator
        self.batch_size, self.dtype = len(batch[0]), parameters[0].dtype
        self.max_norm = math.inf if max_norm is None else max_norm
        self.most_bad = most_bad
        self.steps_per_call = STEPS_PER_CALL
        self._update = guarded_adam(optimizer, self.parameters)
        self._buffers = _changed_in_place(graph)
        self._fuse = fuse
        self._compute: Callable[..., Sequence[Tensor]] = self._unfused
        self._replays: dict[int, Callable[[], None]] = {}
        self._data: tuple[Tensor, ...] = ()
        device, count, groups = parameters[0].device, STEPS_PER_CALL, len(optimizer.param_groups)
        self._rows = torch.zeros(count, self.batch_size, dtype=torch.int64, device=device)
        self._kl_weight = torch.ones(count, dtype=self.dtype, device=device)
        # CUDA's Adam reads a rate from the device in single precision only.
        self._rates = torch.zeros(count, groups, dtype=torch.float32, device=device)
        self._terms = torch.zeros(count, len(StepTerms._fields), dtype=torch.float64, device=device)
        self._counters = torch.zeros(3, dtype=torch.int64, device=device)
        """Steps that ran, steps that moved the parameters, steps in a row that were not finite."""

    @torch.no_grad()
    def run(
        self,
        data: Sequence[Tensor],
        index: Tensor,
        kl_weight: Tensor,
        lr: Tensor | None = None,
        *,
        bad_in_a_row: int = 0,
    ) -> StepTerms:
        """Take steps: see :class:`~pyro_vae.svi.engines.functions.StepFunction`. For other tensors than at
        the last call a step is recorded anew."""
        if lr is None:
            lr = constant_rates(self.optimizer, len(index))
        done = good = 0
        parts = []
        while done < len(index) and bad_in_a_row < self.most_bad:
            rows = index[done : done + self.steps_per_call]
            weights, rates = kl_weight[done : done + len(rows)], lr[good : good + len(rows)]
            terms, bad_in_a_row = self._call(data, rows, weights, rates, bad_in_a_row)
            done, good = done + len(terms), good + int((terms[:, -1] == 0).sum())
            parts.append(terms)
        loss, kl, reconstruction, norm, bad = torch.cat(parts).unbind(1)
        return StepTerms(loss, kl, reconstruction, norm, bad != 0)

    def _call(
        self, data: Sequence[Tensor], index: Tensor, kl_weight: Tensor, lr: Tensor, bad_in_a_row: int
    ) -> tuple[Tensor, int]:
        """A repetition for each row, and one look at what they gave: (steps that ran, terms), and how many of
        the last were not finite."""
        self._record(tuple(data))
        for table, values in ((self._rows, index), (self._kl_weight, kl_weight), (self._rates, lr)):
            table[: len(values)].copy_(values)
        self._begin_to_count(bad_in_a_row)
        before = self.generator.get_state()
        for together, times in zip(
            TOGETHER, (len(index) // TOGETHER[0], len(index) % TOGETHER[0]), strict=True
        ):
            for _ in range(times):
                self._replays[together]()
        ran, _, bad_in_a_row = self._counters.tolist()
        if ran < len(index):
            self.recorder.rewind(before, ran, len(index))
        return self._terms[:ran].cpu(), bad_in_a_row

    def _record(self, data: tuple[Tensor, ...]) -> None:
        known = len(data) == len(self._data) and all(a is b for a, b in zip(data, self._data, strict=True))
        if not self._replays or not known:
            if self._fuse:
                self._compute = self._fused(data)
            self._begin_to_count(self.most_bad)  # so what is run before it is recorded changes nothing
            stream = self.generator.get_state()
            self._replays = {n: self.recorder.record(lambda: self._step(data), n) for n in TOGETHER}
            self.generator.set_state(stream)
            self._data = data

    def _unfused(self, *inputs: Tensor) -> Sequence[Tensor]:
        return self._numbers(*inputs[len(self.parameters) :])

    def _fused(self, data: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """The numbers of a step, compiled for these data; as they are where that fails, and the log says
        why."""
        tables = [self._counters, self._rows, self._kl_weight, self._rates, *data]
        if self._buffers:  # compiled, their changes would not be seen
            return self._unfused
        try:
            with forked_streams():
                return compiled(
                    capture(self._numbers, tables, lifted=self.parameters), [*self.parameters, *tables]
                )
        except Exception as error:  # no compiler, an operation that it does not know, ...
            reason = str(error).strip().split("\n")[0]
            logger.info("the recorded step is not fused: %s: %s", type(error).__name__, reason)
            return self._unfused

    def _begin_to_count(self, bad_in_a_row: int) -> None:
        self._counters.zero_()
        self._counters[2] = bad_in_a_row

    @torch.no_grad()
    def _step(self, data: Sequence[Tensor]) -> None:
        """One step. Nothing in it may ask the device for a number, or make a tensor of one of the host's."""
        now = self._counters.narrow(0, 0, 1).clone()
        buffers = [buffer.clone() for buffer in self._buffers]
        terms, rates, skip, ended, counted, *gradients = self._compute(
            *self.parameters, self._counters, self._rows, self._kl_weight, self._rates, *data
        )
        for buffer, value in zip(self._buffers, buffers, strict=True):
            buffer.copy_(torch.where(ended, value, buffer))
        # Where the steps have ended this row is one behind the last, which nobody reads.
        self._terms.index_copy_(0, now, terms)
        self._update(gradients, rates, skip)
        self._counters.add_(counted)

    def _numbers(
        self, counters: Tensor, rows: Tensor, kl_weight: Tensor, rates: Tensor, *data: Tensor
    ) -> tuple[Tensor, ...]:
        """What a step computes before it changes anything: its row of terms, the rates, whether to skip the
        update, whether the steps have ended, what the counters grow by, and the clipped gradients."""
        ran, taken, bad_so_far = counters.split(1)
        batch = rows.index_select(0, ran).squeeze(0)
        loss, kl, reconstruction, *gradients = self.graph(
            *self.parameters,
            kl_weight.index_select(0, ran).squeeze(0),
            *(part.index_select(0, batch) for part in data),
        )
        norm = total_norm(gradients).to(loss.dtype)
        bad = (loss - loss) + (norm - norm) != 0  # NaN, unless both are finite
        ended = (bad_so_far >= self.most_bad).squeeze(0)
        skip = bad | ended
        terms = torch.stack([loss, kl, reconstruction, norm, bad.to(loss.dtype)]).double().unsqueeze(0)
        bad_now = torch.where(ended, bad_so_far, (bad_so_far + 1) * bad)
        on, moved = (flag.logical_not().long().unsqueeze(0) for flag in (ended, skip))
        counted = torch.cat([on, moved, bad_now - bad_so_far])
        rate = rates.index_select(0, taken).squeeze(0)
        return terms, rate, skip, ended, counted, *self._clipped(gradients, norm)

    def _clipped(self, gradients: Sequence[Tensor], norm: Tensor) -> Sequence[Tensor]:
        """As :func:`~pyro_vae.svi.engines.updates.clipped`, with a norm that only the device knows."""
        if self.max_norm == math.inf:
            return gradients
        share = (self.max_norm / norm.double()).clamp(max=1)
        return torch._foreach_mul(list(gradients), share.to(norm.dtype))


def _changed_in_place(graph: fx.GraphModule) -> list[Tensor]:
    """The tensors of the modules that a graph may change. Not only the first argument of an operation in
    place: batch norm's change their statistics without saying so in their schema."""
    changed = {}
    for node in graph.graph.nodes:
        if not mutates(node) and "batch_norm" not in str(node.target):
            continue
        for argument in map(_owner, node.all_input_nodes):
            if argument.op == "get_attr":
                changed[str(argument.target)] = getattr(graph, str(argument.target))
        if mutates(node) and _owner(node.all_input_nodes[0]).op == "placeholder":
            raise CannotError(f"{node.target} changes an input of the step in place")
    return list(changed.values())


def _owner(node: fx.Node) -> fx.Node:
    """Whose memory a node shows: its own, or that of a node before."""
    while node.op == "call_function" and (schema := getattr(node.target, "_schema", None)) is not None:
        if not node.all_input_nodes or all(value.alias_info is None for value in schema.returns):
            break
        node = node.all_input_nodes[0]
    return node
