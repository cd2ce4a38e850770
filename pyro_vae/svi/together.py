"""The fits of several seeds of one pair: on threads over the native function, or in turn over one graph."""

import dataclasses
import functools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch.utils.data import DataLoader, Dataset

from pyro_vae.arrays import is_mapped
from pyro_vae.batches.batches import ArrayBatches, Batch
from pyro_vae.batches.rows import as_tensors
from pyro_vae.devices import resolve_device, threads_for
from pyro_vae.pairs.isolation import Program, empty_store, isolated, training_mode
from pyro_vae.pairs.minibatches import check_minibatches
from pyro_vae.pairs.numbers import meant_as_floats
from pyro_vae.pairs.parameters import bound
from pyro_vae.pairs.running import check_support, float_dtype
from pyro_vae.pairs.seeded import MakePair, require_new, seeded_pair
from pyro_vae.progress import progress_bar
from pyro_vae.svi.engines.captured import CapturedSteps
from pyro_vae.svi.engines.choice import build_pays
from pyro_vae.svi.engines.eager import EagerSteps
from pyro_vae.svi.engines.many_steps import MOST_BUILDS, NativeSteps
from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.engines.optimizers import Optimization
from pyro_vae.svi.engines.steps import Ahead, CannotError, Plan, Taken
from pyro_vae.svi.fitting import fit_length
from pyro_vae.svi.loop import Loop
from pyro_vae.svi.nonfinite import BAD_STEPS_IN_A_ROW
from pyro_vae.svi.objectives.pyro_elbo import as_objective
from pyro_vae.svi.objectives.whole_data import WholeData
from pyro_vae.svi.result import Fit

logger = logging.getLogger(__name__)

OF_OPTIMIZATION = {"objective", "optimizer", "schedule", "lr", "lr_multiplier", "max_norm"}
OF_THREADS = OF_OPTIMIZATION | {"epochs", "steps", "batch_size", "progress", "device", "engine"}


class SeedSteps(NativeSteps):
    """The native steps of one seed among several: noise from a stream of its own, one thread, and no step
    that is not native, for Pyro and torch's own stream belong to all."""

    most_functions, any_size, most_bad = 2 * MOST_BUILDS, True, BAD_STEPS_IN_A_ROW

    def __init__(self, captured: CapturedSteps, seed: int) -> None:
        super().__init__(captured)
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)

    def make(self, graph: fx.GraphModule, batch: Batch) -> NativeFunction:
        """Compile the function, or take the one that was compiled for another seed."""
        task = self.task
        return NativeFunction(
            graph,
            task.leaves,
            batch,
            task.optimizer,
            max_norm=task.max_norm,
            most_bad=self.most_bad,
            threads=1,
            generator=self.generator,
        )

    def take_one(self, ahead: Ahead, plan: Plan) -> Taken:  # noqa: ARG002
        """End the epoch, or the fit where its steps are no longer finite."""
        if plan.bad_in_a_row < self.most_bad:
            return Taken([], 0)
        raise CannotError(f"{plan.bad_in_a_row} steps of seed {self.seed} are not finite")


class SeedFit:
    """The fit of one seed, for a thread."""

    def __init__(
        self, seed: int, pair: tuple[Program, Program], batches: ArrayBatches, how: Optimization
    ) -> None:
        self.seed, self.pair, self.batches, self.state = seed, pair, batches, empty_store()
        with isolated(*pair, state=self.state, seed=seed):
            self.task, self.flops = how.of(*pair, batches.first())
        self.task.alone = functools.partial(isolated, *pair, state=self.state)
        self.captured = CapturedSteps(self.task)
        self.loop = Loop(self.task, [])

    def make_ready(self, first: "SeedFit") -> None:
        """Have the functions for batches of all sizes, by the graphs of the first seed where they serve."""
        if not self.is_like(first):
            raise CannotError("make_pair gives pairs whose parameters differ in name or shape")
        self.captured.like = None if self is first else first.captured
        steps = SeedSteps(self.captured, self.seed)
        sizes = {self.batches.batch_size, self.batches.observations % self.batches.batch_size}
        steps.make_ready(self.batches.tensors, sorted(sizes - {0}))
        self.loop.chain.append(steps)

    def run_in_turn(self, first: "SeedFit", total: int, *, progress: bool) -> float:
        """Take captured steps, by the graphs of the first seed where they serve, and return how many a
        second. Pyro and torch's stream belong to this fit meanwhile, as in :func:`fit`."""
        self.task.alone = nullcontext
        self.captured.like = None if self is first or not self.is_like(first) else first.captured
        self.loop.chain += [self.captured, EagerSteps(self.task)]
        started = time.perf_counter()
        with (
            isolated(*self.pair, state=self.state, seed=self.seed),
            progress_bar(total, f"fit of seed {self.seed}", enabled=progress) as show,
        ):
            told = [lambda record: show(record.step, f"loss {record.loss:.4g} nats")]
            self.loop.run(self.batches, total, callbacks=told)
        return total / max(time.perf_counter() - started, 1e-9)

    def is_like(self, other: "SeedFit") -> bool:
        """Whether the pairs have parameters of the same names, shapes and types."""
        mine, theirs = ([(n, p.shape, p.dtype) for n, p in f.task.parameters.items()] for f in (self, other))
        return mine == theirs

    def result(self, steps_per_second: float) -> Fit:
        model, guide = (bound(program, self.state) for program in self.pair)
        loop, state = self.loop, self.state
        return Fit(model, guide, loop.recorder, self.seed, "cpu", loop.engine, steps_per_second, _state=state)


def fit_together(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    """Fit a loop for each seed, on as many threads as there are cores; where so few steps are not worth a
    build, one after another by one captured graph.

    The generated function runs without Python's lock, so threads share the cores with nothing to wait for.
    Pyro runs before, when the graph is captured and compared with Pyro for every seed, and when it is
    compared again; threads take turns then. Raises CannotError if a seed cannot be fitted by native steps
    alone."""
    _check_that_threads_can(seeds, data, options)
    pairs: list[tuple[Program, Program]] = []
    for seed in seeds:
        pairs.append(seeded_pair(make_pair, seed))
        require_new(pairs[-1], pairs[:-1])
    batch_size = options.get("batch_size", 128)
    tensors = _as_floats(data, pairs[0], seeds[0], batch_size)
    how = Optimization(**{name: options[name] for name in OF_OPTIMIZATION & {*options} if options[name]})
    how = dataclasses.replace(how, objective=as_objective(how.objective))
    how = _about_all_data(how, pairs[0], ArrayBatches(tensors, batch_size, seeds[0]))

    def begun(seed: int, pair: tuple[Program, Program]) -> SeedFit:
        return SeedFit(seed, pair, ArrayBatches(tensors, batch_size, seed), how)

    started, cores, first = time.perf_counter(), torch.get_num_threads(), begun(seeds[0], pairs[0])
    total = fit_length(options.get("epochs"), options.get("steps"), len(first.batches))
    native = options.get("engine") == "native" or build_pays(len(seeds) * total, first.flops)
    if not native:
        reason = f"{len(seeds)} times {total} steps are not worth a build"
        if has_workers():
            raise CannotError(reason)
        logger.info("each seed is fitted by itself: %s", reason)
    with training_mode([program for pair in pairs for program in pair], training=True):
        with threads_for(first.flops):
            fits = [first, *map(begun, seeds[1:], pairs[1:])]
            if not native:
                progress = options.get("progress", True)
                return [one.result(one.run_in_turn(first, total, progress=progress)) for one in fits]
            for one in fits:
                one.make_ready(first)
        _run_on_threads(fits, total, min(len(fits), cores))
    rate = len(fits) * total / max(time.perf_counter() - started, 1e-9)
    return [one.result(rate) for one in fits]


def _run_on_threads(fits: list[SeedFit], total: int, threads: int) -> None:
    """Run the loops to their end; where one raises, so does this, and the others stop after their call."""
    stop = threading.Event()

    def check_stop() -> None:
        if stop.is_set():
            raise CannotError("the fit of another seed has ended")

    with ThreadPoolExecutor(threads) as pool:
        try:
            for run in [pool.submit(one.loop.run, one.batches, total, save=check_stop) for one in fits]:
                run.result()
        except BaseException:  # an interrupt, too
            stop.set()
            raise


def _as_floats(
    data: Any, pair: tuple[Program, Program], seed: int, batch_size: int
) -> tuple[torch.Tensor, ...]:
    """The data as tensors, whole numbers made floats where :func:`fit` makes them so; or an error where they
    are outside the model's support."""
    dtype = float_dtype(*pair)
    whole = as_tensors(data, device=torch.device("cpu"), dtype=dtype)
    floats = meant_as_floats(*pair, tuple(part[:batch_size] for part in whole), dtype, seed=seed)
    check_support(pair[0], data, "data")
    return tuple(part.to(dtype) if i in floats else part for i, part in enumerate(whole))


def _about_all_data(how: Optimization, pair: tuple[Program, Program], batches: ArrayBatches) -> Optimization:
    """The same for minibatches that the pair takes for all data, as :func:`fit` has it; or an error where
    they would mean something else."""
    with isolated(*pair, state=empty_store(), seed=batches.seed):
        plate = check_minibatches(*pair, batches, batches.first())
    if plate is None:
        return how
    return dataclasses.replace(how, objective=WholeData(how.objective, plate, batches.observations))


def _check_that_threads_can(seeds: list[int], data: Any, options: dict[str, Any]) -> None:
    if len(seeds) < 2:
        raise CannotError(f"there are {len(seeds)} of them")
    if set(options) - OF_THREADS:
        raise CannotError(f"{', '.join(sorted(set(options) - OF_THREADS))} given")
    if options.get("engine", "auto") not in ("auto", "native"):
        raise CannotError(f"engine={options['engine']!r} given")
    device = resolve_device(options.get("device", "auto"))
    if device.type != "cpu" or isinstance(data, Dataset | DataLoader):
        raise CannotError("only tensors in the CPU's memory can be shared by all")
    if any(map(is_mapped, data if isinstance(data, tuple) else (data,))):
        raise CannotError("memory-mapped data are read batch by batch")


def has_workers() -> bool:
    """Whether somebody configured more than one of joblib's processes."""
    import joblib

    return bool(joblib.effective_n_jobs(None) > 1)
