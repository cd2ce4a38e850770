"""Whether native steps pay, by the clock, without moving anything."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from pyro_vae.svi.native.engine import NativeSteps

__all__ = ["speedup"]

ROUNDS = 3
STEPS = 4


def speedup(native: NativeSteps, graph: fx.GraphModule, data: Sequence[Tensor]) -> float:
    """The time of a step through the graph and the optimizer, divided by that of a native one.

    Each side takes a few steps in turn and its best time counts, since other work on the machine only ever
    adds to it. Parameters, the optimizer's state and the random stream are as before at the end.

    Parameters
    ----------
    native, graph
        Steps, and the graph that they were made from.
    data
        At least one batch, as for :meth:`NativeSteps.run`.
    """
    index = torch.arange(native.program.batch_size).repeat(STEPS, 1)
    batch = [part[: native.program.batch_size] for part in data]
    weight = torch.ones((), dtype=native.program.dtype)
    best_native = best_graph = math.inf
    with _as_it_was(native), torch.random.fork_rng(devices=[]):
        for _ in range(ROUNDS):
            started = time.perf_counter()
            native.run(data, index, weight.expand(STEPS))
            best_native = min(best_native, time.perf_counter() - started)
            started = time.perf_counter()
            for _ in range(STEPS):
                _step_through(graph, native, batch, weight)
            best_graph = min(best_graph, time.perf_counter() - started)
    return best_graph / best_native


def _step_through(graph: fx.GraphModule, native: NativeSteps, batch: list[Tensor], weight: Tensor) -> None:
    with torch.no_grad():
        _, _, _, *gradients = graph(*native.parameters, weight, *batch)
    for parameter, gradient in zip(native.parameters, gradients, strict=True):
        parameter.grad = gradient
    native.optimizer.step()


@contextmanager
def _as_it_was(native: NativeSteps) -> Iterator[None]:
    """Gives parameters, gradients and the optimizer's state back as they were."""
    parameters, state = native.parameters, native.optimizer.state
    values = [(p, p.detach().clone(), p.grad) for p in parameters]
    states = {p: {key: x.clone() for key, x in state[p].items()} for p in parameters if state.get(p)}
    bad = native.bad_in_a_row
    try:
        yield
    finally:
        native.bad_in_a_row = bad
        with torch.no_grad():
            for parameter, value, gradient in values:
                parameter.copy_(value)
                parameter.grad = gradient
                state.pop(parameter, None)
        state.update(states)
