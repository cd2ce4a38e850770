"""Whether native steps are right and pay, without moving anything."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from pyro_vae.svi.batches import Batch
from pyro_vae.svi.native.build import cache_folder
from pyro_vae.svi.native.engine import NativeSteps
from pyro_vae.svi.replay import make_replay
from pyro_vae.svi.updates import make_update
from pyro_vae.svi.verification import close

__all__ = ["gives", "is_faster", "speedup"]

ROUNDS = 3
STEPS = 4


def gives(
    native: NativeSteps, data: Sequence[Tensor], wanted: Callable[[Tensor, Batch], Sequence[Tensor]]
) -> bool:
    """Whether a native step has the loss and the gradients that it should have, from the same noise.

    The gradients are read off Adam's first moments.

    Parameters
    ----------
    native
        The steps; nothing of theirs is moved.
    data
        At least one batch, as for :meth:`NativeSteps.run`.
    wanted
        ``wanted(kl_weight, batch)``: loss, KL, reconstruction and a gradient for each parameter, with noise
        from torch's default generator.
    """
    index = torch.arange(native.program.batch_size)
    weight = torch.ones((), dtype=native.program.dtype)
    groups = native.optimizer.param_groups
    with _as_it_was(native), torch.random.fork_rng(devices=[]):
        stream = native.generator.get_state()
        torch.default_generator.set_state(stream)
        loss, _, _, *gradients = wanted(weight, tuple(x[index] for x in data))
        moments = [native.optimizer.state[parameter]["exp_avg"] for parameter in native.parameters]
        torch._foreach_zero_(moments)
        native.generator.set_state(stream)
        terms = native.run(data, index[None], weight[None], torch.zeros(1, len(groups)))
        if bool(terms.bad[0]):
            return not all(bool(torch.isfinite(x).all()) for x in (loss, *gradients))
        clip = min(1.0, native.max_norm / max(float(terms.grad_norm[0]), 1e-300))
        share = (1 - groups[0]["betas"][0]) * clip
        pairs = zip([terms.loss[0], *moments], [loss, *torch._foreach_mul(gradients, share)], strict=True)
        return all(close(a, b) for a, b in pairs)


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
    with _as_it_was(native), torch.random.fork_rng(devices=[]):
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


@contextmanager
def _as_it_was(native: NativeSteps) -> Iterator[None]:
    """Gives parameters, gradients, the optimizer's state and the random stream back as they were: in place,
    since others may hold these tensors."""
    states = native.begin()
    tensors = [*native.parameters, *(x for state in states for x in state.values())]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [parameter.grad for parameter in native.parameters]
    bad, stream = native.bad_in_a_row, native.generator.get_state()
    native.bad_in_a_row = 0
    try:
        yield
    finally:
        native.bad_in_a_row = bad
        native.generator.set_state(stream)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(native.parameters, gradients, strict=True):
            parameter.grad = gradient
