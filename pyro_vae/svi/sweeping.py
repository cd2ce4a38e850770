"""``sweep``: the fits of many seeds of one pair, on threads where that is faster."""

import dataclasses
import difflib
import functools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils.data import DataLoader, Dataset

from pyro_vae.arguments import check_numbers, check_programs, kind, parameters_of
from pyro_vae.arrays import is_mapped
from pyro_vae.batches.batches import ArrayBatches, Batch
from pyro_vae.batches.rows import as_tensors
from pyro_vae.devices import forked_streams, resolve_device, threads_for
from pyro_vae.graphs.surroundings import places_around
from pyro_vae.pairs.isolation import (
    Program,
    empty_store,
    isolated,
    one_at_a_time,
    owner,
    training_mode,
)
from pyro_vae.pairs.minibatches import check_minibatches
from pyro_vae.pairs.numbers import meant_as_floats
from pyro_vae.pairs.parameters import bound, unbound
from pyro_vae.pairs.running import check_support, float_dtype
from pyro_vae.progress import progress_bar
from pyro_vae.svi.arguments import check_options
from pyro_vae.svi.engines.captured import CapturedSteps
from pyro_vae.svi.engines.choice import build_pays
from pyro_vae.svi.engines.eager import EagerSteps
from pyro_vae.svi.engines.many_steps import MOST_BUILDS, NativeSteps
from pyro_vae.svi.engines.native import NativeFunction
from pyro_vae.svi.engines.optimizers import Optimization
from pyro_vae.svi.engines.steps import Ahead, CannotError, Plan, Taken
from pyro_vae.svi.fitting import fit, fit_length
from pyro_vae.svi.loop import Loop
from pyro_vae.svi.nonfinite import BAD_STEPS_IN_A_ROW
from pyro_vae.svi.objectives.pyro_elbo import as_objective
from pyro_vae.svi.objectives.whole_data import WholeData
from pyro_vae.svi.result import Fit

logger = logging.getLogger(__name__)

MakePair = Callable[[], tuple[Program, Program]]

OF_OPTIMIZATION = {"objective", "optimizer", "schedule", "lr", "lr_multiplier", "max_norm"}
OF_THREADS = OF_OPTIMIZATION | {"epochs", "steps", "batch_size", "progress", "device", "engine"}


def sweep(make_pair: MakePair, seeds: Sequence[int], data: Any, **options: Any) -> list[Fit]:
    """Fit the same pair with several seeds.

    Each fit is the one that :func:`fit` gives with that seed, for a pair that was made after
    ``torch.manual_seed(seed)``: the same batches and the same noise, equal up to rounding. How they are
    computed follows from what is asked, never from the clock; the first that applies:

    1. **Threads over the native function**, one fit each: where it can express the graph, there is a C++
       compiler, and the steps of all seeds together are worth its build
       (:func:`~pyro_vae.svi.engines.choice.build_pays`) or ``engine="native"`` is given. 8 seeds of a
       64-128-8 network, 1,000 steps each on 2 cores, take 0.3 of the time of captured fits one after another,
       with an empty cache of builds 0.45 (``benchmarks/results/sweep.md``). It needs tensors on the CPU, and
       options among ``epochs``, ``steps``, ``batch_size``, ``lr``, ``objective``, ``max_norm``,
       ``optimizer``, ``schedule``, ``lr_multiplier``, ``engine``, ``device`` and ``progress``.
    2. **Processes**, where a ``joblib.parallel_config`` with more than one job is active: workers on this
       machine, with any of joblib's backends. For pairs that only run eagerly, as much is gained as there
       are cores.
    3. One after another, by one captured graph where the pairs of all seeds give its numbers.

    The log says why it is not threads.

    Parameters
    ----------
    make_pair
        Makes a new model and guide; every call makes the same structure.
    seeds
        One fit for each.
    data
        As for :func:`fit`.
    **options
        Those of :func:`fit`, except ``seed``.

    Returns
    -------
    list of Fit
        In the order of ``seeds``. Where they were fitted on threads, ``engine`` is ``"native"``, and
        ``steps_per_second`` counts the steps of all.

    Raises
    ------
    ValueError, TypeError, NonFiniteError
        As :func:`fit`.

    Examples
    --------
    >>> import torch, pyro_vae
    >>> def make_pair():
    ...     model = pyro_vae.models.VAE(torch.nn.Linear(2, 5), 2, "normal")
    ...     return model, pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(5, 16))
    >>> fits = pyro_vae.sweep(make_pair, range(3), torch.randn(256, 5), epochs=2, progress=False)
    >>> [fitted.seed for fitted in fits]
    [0, 1, 2]
    """
    _check_sweep(make_pair, seeds, options)
    seeds = list(seeds)
    try:
        return _fit_together(make_pair, seeds, data, options)
    except CannotError as reason:
        logger.info("each seed is fitted by itself: %s", reason)
    return _fit_apart(make_pair, seeds, data, options)


def _check_sweep(make_pair: Any, seeds: Any, options: dict[str, Any]) -> None:
    """Whatever can be said before the first fit, however the fits will run."""
    if not callable(make_pair) or isinstance(make_pair, torch.nn.Module):
        raise TypeError(f"make_pair is {kind(make_pair)}; give a function that makes a model and a guide")
    if "seed" in options:
        raise TypeError("sweep takes seeds, one for each fit, and not seed")
    if options.get("checkpoint") is not None:
        raise TypeError("sweep takes no checkpoint; give each fit its own, fit(..., seed=0, checkpoint=...)")
    if not isinstance(seeds, Iterable) or isinstance(seeds, bytes):
        raise TypeError(f"seeds is {seeds!r}; give one seed for each fit, such as range({seeds!r})")
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds is empty; give at least one seed")
    for i, seed in enumerate(seeds):
        check_numbers(**{f"seeds[{i}]": seed})
    known = parameters_of(fit)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{name!r} is no option of fit; {hint}")
    check_options(options)
    resolve_device(options.get("device", "auto"))


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


class _SeedFit:
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

    def make_ready(self, first: "_SeedFit") -> None:
        """Have the functions for batches of all sizes, by the graphs of the first seed where they serve."""
        if not self.is_like(first):
            raise CannotError("make_pair gives pairs whose parameters differ in name or shape")
        self.captured.like = None if self is first else first.captured
        steps = SeedSteps(self.captured, self.seed)
        sizes = {self.batches.batch_size, self.batches.observations % self.batches.batch_size}
        steps.make_ready(self.batches.tensors, sorted(sizes - {0}))
        self.loop.chain.append(steps)

    def run_in_turn(self, first: "_SeedFit", total: int, *, progress: bool) -> float:
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

    def is_like(self, other: "_SeedFit") -> bool:
        """Whether the pairs have parameters of the same names, shapes and types."""
        mine, theirs = ([(n, p.shape, p.dtype) for n, p in f.task.parameters.items()] for f in (self, other))
        return mine == theirs

    def result(self, steps_per_second: float) -> Fit:
        model, guide = (bound(program, self.state) for program in self.pair)
        loop, state = self.loop, self.state
        return Fit(model, guide, loop.recorder, self.seed, "cpu", loop.engine, steps_per_second, _state=state)


def _fit_together(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    """A loop for each seed, on as many threads as there are cores; where so few steps are not worth a build,
    one after another by one captured graph.

    The generated function runs without Python's lock, so threads share the cores with nothing to wait for.
    Pyro runs before, when the graph is captured and compared with Pyro for every seed, and when it is
    compared again; threads take turns then. Raises CannotError if a seed cannot be fitted by native steps
    alone."""
    _check_that_threads_can(seeds, data, options)
    pairs: list[tuple[Program, Program]] = []
    for seed in seeds:
        pairs.append(seeded_pair(make_pair, seed))
        _require_new(pairs[-1], pairs[:-1])
    dtype, batch_size = float_dtype(*pairs[0]), options.get("batch_size", 128)
    whole = as_tensors(data, device=torch.device("cpu"), dtype=dtype)
    floats = meant_as_floats(*pairs[0], tuple(part[:batch_size] for part in whole), dtype, seed=seeds[0])
    tensors = tuple(part.to(dtype) if i in floats else part for i, part in enumerate(whole))
    check_support(pairs[0][0], data, "data")
    how = Optimization(**{name: options[name] for name in OF_OPTIMIZATION & {*options} if options[name]})
    how = dataclasses.replace(how, objective=as_objective(how.objective))
    how = _about_all_data(how, pairs[0], ArrayBatches(tensors, batch_size, seeds[0]))
    started, cores, stop = time.perf_counter(), torch.get_num_threads(), threading.Event()

    def begun(seed: int, pair: tuple[Program, Program]) -> _SeedFit:
        return _SeedFit(seed, pair, ArrayBatches(tensors, batch_size, seed), how)

    def check_stop() -> None:
        if stop.is_set():
            raise CannotError("the fit of another seed has ended")

    first = begun(seeds[0], pairs[0])
    total = fit_length(options.get("epochs"), options.get("steps"), len(first.batches))
    native = options.get("engine") == "native" or build_pays(len(seeds) * total, first.flops)
    if not native:
        reason = f"{len(seeds)} times {total} steps are not worth a build"
        if _has_workers():
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
        with ThreadPoolExecutor(min(len(fits), cores)) as threads:
            try:
                for done in [
                    threads.submit(one.loop.run, one.batches, total, save=check_stop) for one in fits
                ]:
                    done.result()
            except BaseException:  # an interrupt, too: the others end after the call that they are in
                stop.set()
                raise
    rate = len(fits) * total / max(time.perf_counter() - started, 1e-9)
    return [one.result(rate) for one in fits]


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


def seeded_pair(make_pair: MakePair, seed: int) -> tuple[Program, Program]:
    """Make a pair after ``torch.manual_seed(seed)``; the stream outside does not move."""
    with one_at_a_time(), forked_streams():
        torch.manual_seed(seed)
        pair = make_pair()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"make_pair made {kind(pair)}; let it return a model and a guide")
    check_programs(model=pair[0], guide=pair[1])
    return pair


def _require_new(pair: tuple[Program, Program], others: list[tuple[Program, Program]]) -> None:
    """Raise a ValueError if a pair trains parameters of another: the last fit would be that of all."""
    known = {id(p) for other in others for program in other for _, _, p in _trained_by(program)}
    for program in pair:
        for what, name, parameter in _trained_by(program):
            if id(parameter) in known:
                raise ValueError(
                    f"make_pair gives {what} whose parameter {name!r} was in an earlier pair; make new "
                    "modules in every call"
                )


def _trained_by(program: Program) -> Iterator[tuple[str, str, torch.Tensor]]:
    """What trains, in words, with its parameters: those of a module, or of the modules that a plain function
    reaches."""
    module = owner(program)
    if module is not None:
        named = [(kind(module), name, parameter) for name, parameter in module.named_parameters()]
    else:
        function = unbound(program)
        what = f"the function {getattr(function, '__name__', type(function).__name__)}"
        named = [(what, place.name, place.value) for place in places_around([function])[0]]
    for what, name, value in named:
        if isinstance(value, torch.nn.Parameter) and value.requires_grad:
            yield what, name, value


def _has_workers() -> bool:
    """Whether somebody configured more than one of joblib's processes."""
    import joblib

    return bool(joblib.effective_n_jobs(None) > 1)


def _fit_apart(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    """Each by :func:`fit`: in joblib's processes if somebody configured more than one, else one after
    another."""
    import joblib

    if options.get("callbacks") or not _has_workers():
        fits: list[Fit] = []
        for seed in seeds:
            pair = seeded_pair(make_pair, seed)
            _require_new(pair, [(done.model, done.guide) for done in fits])
            fits.append(fit(*pair, data, seed=seed, **options))
        return fits
    with tempfile.TemporaryDirectory(prefix="pyro-vae-sweep-") as folder:
        places = [Path(folder) / str(i) for i in range(len(seeds))]
        joblib.Parallel()(
            joblib.delayed(_fit_into)(
                place, torch.get_default_dtype(), make_pair, seed, data, {**options, "progress": False}
            )
            for place, seed in zip(places, seeds, strict=True)
        )
        pairs = [seeded_pair(make_pair, seed) for seed in seeds]
        return [Fit.load(place, *pair) for place, pair in zip(places, pairs, strict=True)]


def _fit_into(
    place: Path, dtype: torch.dtype, make_pair: MakePair, seed: int, data: Any, options: dict[str, Any]
) -> None:
    """In a worker: the fit goes to the parent by a folder, since what a pair holds need not be picklable."""
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    fit(*seeded_pair(make_pair, seed), data, seed=seed, **options).save(place)
