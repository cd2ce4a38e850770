"""Whether native steps pay."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, fx

from pyro_vae.graphs.replay import make_replay
from pyro_vae.svi.engines.native.cache import cache_folder
from pyro_vae.svi.engines.native.engine import NativeSteps
from pyro_vae.svi.engines.trial import as_it_was
from pyro_vae.svi.engines.updates import make_update

__all__ = ["is_faster", "speedup"]

ROUNDS = 3
STEPS = 4


def is_faster(native: NativeSteps, graph: fx.GraphModule, data: Sequence[Tensor]) -> bool:
    """Whether native steps beat the graph on this machine.

    It is measured once and the answer is kept in the cache, beside the build: a fit that is done again
    chooses the same engine and so gives the same bits. The arguments are those of :func:`speedup`.
    """
    kept = cache_folder() / f"{native.key}-{torch.__version__}-{torch.get_num_threads()}.speedup"
    try:
        return float(kept.read_text()) > 1
    except (OSError, ValueError):  # not measured yet, or not wholly written
        ratio = speedup(native, graph, data)
        with suppress(OSError):  # then the next fit measures again
            kept.write_text(f"{ratio:.3f}\n")
        return ratio > 1


def speedup(native: NativeSteps, graph: fx.GraphModule, data: Sequence[Tensor]) -> float:
    """The time of a step through the graph's replay and the optimizer, divided by that of a native one.

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
    with as_it_was(native), torch.random.fork_rng(devices=[]):
        replay, update = make_replay(graph), make_update(native.optimizer, native.parameters)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            native.run(data, index, weight.expand(STEPS))
            best_native = min(best_native, time.perf_counter() - started)
            started = time.perf_counter()
            for _ in range(STEPS):
                with torch.no_grad():
                    _, _, _, *gradients = replay(*native.parameters, weight, *batch)
                update(gradients)
            best_graph = min(best_graph, time.perf_counter() - started)
    return best_graph / best_native
