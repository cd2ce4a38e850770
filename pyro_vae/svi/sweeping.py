"""``sweep``: the fits of many seeds of one pair, made together where that is faster."""

import difflib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pyro_vae.arguments import check_numbers, parameters_of
from pyro_vae.arrays import is_mapped
from pyro_vae.batches.batches import Batch
from pyro_vae.devices import resolve_device
from pyro_vae.pairs.isolation import training_mode
from pyro_vae.svi.arguments import check_choices
from pyro_vae.svi.engines.many_steps import build_pays
from pyro_vae.svi.engines.threads import WORTH_A_SECOND_THREAD, threads_for
from pyro_vae.svi.fitting import fit, fit_length, make_optimizer
from pyro_vae.svi.loop import BAD_STEPS_IN_A_ROW
from pyro_vae.svi.members import MakePair, Member, OneByOneError, make_members, seeded_pair, set_up_members
from pyro_vae.svi.native_seeds import NativeSeeds
from pyro_vae.svi.objectives.elbo import ELBO
from pyro_vae.svi.result import Fit
from pyro_vae.svi.vectorized import VectorizedSteps

__all__ = ["sweep"]

logger = logging.getLogger(__name__)

OF_VECTORIZED = {
    "epochs",
    "steps",
    "batch_size",
    "lr",
    "objective",
    "max_norm",
    "progress",
    "device",
    "engine",
}
OF_NATIVE = OF_VECTORIZED | {"optimizer", "schedule", "lr_multiplier"}


def sweep(make_pair: MakePair, seeds: Sequence[int], data: Any, **options: Any) -> list[Fit]:
    """Fit the same pair with several seeds.

    Each fit is the one that :func:`fit` gives with that seed, for a pair that was made after
    ``torch.manual_seed(seed)``: the same batches and the same noise, equal up to rounding. How they are
    computed follows from what is asked, never from the clock; the first that applies:

    1. **Threads over the native function**, one fit each: where it can express the graph, there is a C++
       compiler, and the steps of all seeds together are worth its build
       (:func:`~pyro_vae.svi.engines.many_steps.build_pays`) or ``engine="native"`` is given. 8 seeds of a
       64-128-8 network, 1,000 steps each on 2 cores, take 0.3 of the time of captured fits one after another,
       with an empty cache of builds 0.45 (``benchmarks/results/sweep.md``).
    2. **All seeds in one step**, the captured graph vectorized over them, for steps of less than 100 MFLOP
       whose graph draws only normal noise and changes no buffers; larger ones fill the processor already.
    3. **Processes**, where a ``joblib.parallel_config`` with more than one job is active: workers on this
       machine, with any of joblib's backends. For pairs that only run eagerly, as much is gained as there
       are cores.
    4. One after another.

    The first two need tensors on the CPU, and options among ``epochs``, ``steps``, ``batch_size``, ``lr``,
    ``objective``, ``max_norm``, ``engine``, ``device`` and ``progress``; threads also take ``optimizer``,
    ``schedule`` and ``lr_multiplier``. The log says why the ones before were not chosen.

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
        In the order of ``seeds``. Where they were fitted together, ``engine`` is ``"native"`` or
        ``"vectorized"``, and ``steps_per_second`` counts the steps of all.

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
    except OneByOneError as reason:
        logger.info("each seed is fitted by itself: %s", reason)
    return _fit_apart(make_pair, seeds, data, options)


def _check_sweep(make_pair: Any, seeds: Any, options: dict[str, Any]) -> None:
    """Whatever can be said before the first fit, however the fits will run."""
    if not callable(make_pair) or isinstance(make_pair, torch.nn.Module):
        raise TypeError(
            f"make_pair is a {type(make_pair).__name__}; give a function that makes a model and a guide"
        )
    if "seed" in options:
        raise TypeError("sweep takes seeds, one for each fit, and not seed")
    if options.get("checkpoint") is not None:
        raise TypeError("sweep takes no checkpoint; give each fit its own, fit(..., seed=0, checkpoint=...)")
    if not isinstance(seeds, Iterable):
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
    numbers = ("epochs", "steps", "batch_size", "lr", "patience", "max_norm")
    check_numbers(**{name: options[name] for name in numbers if name in options})
    check_choices(
        objective=options.get("objective") or ELBO(),
        engine=options.get("engine", "auto"),
        lr_multiplier=options.get("lr_multiplier"),
        optimizer=options.get("optimizer"),
        schedule=options.get("schedule"),
        callbacks=options.get("callbacks", ()),
    )
    resolve_device(options.get("device", "auto"))


def _fit_together(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    _check_that_fits_can_meet(seeds, data, options)
    members = make_members(make_pair, seeds, data, options.get("batch_size") or 128)
    total = fit_length(options.get("epochs"), options.get("steps"), len(members[0].batches))
    with ExitStack() as modes:
        for member in members:
            modes.enter_context(training_mode((member.model, member.guide), training=True))
        count, flops = set_up_members(members)
        started, cores = time.perf_counter(), torch.get_num_threads()
        with threads_for(flops):
            try:
                run: NativeSeeds | VectorizedSteps = _native(members, options, count, total, flops, cores)
                way = "native"
            except OneByOneError as reason:
                logger.info("the seeds are not fitted by threads over the native function: %s", reason)
                run, way = _vectorized(members, options, count, flops), "vectorized"
            run.run(total)
        seconds = time.perf_counter() - started
    rate = len(members) * total / max(seconds, 1e-9)
    return [member.fit(way, rate) for member in members]


def _check_that_fits_can_meet(seeds: list[int], data: Any, options: dict[str, Any]) -> None:
    if len(seeds) < 2:
        raise OneByOneError(f"there are {len(seeds)} of them")
    if set(options) - OF_NATIVE:
        raise OneByOneError(f"{', '.join(sorted(set(options) - OF_NATIVE))} given")
    if options.get("engine", "auto") not in ("auto", "native"):
        raise OneByOneError(f"engine={options['engine']!r} given")
    device = resolve_device(options.get("device", "auto"))
    if device.type != "cpu" or isinstance(data, Dataset | DataLoader):
        raise OneByOneError("only tensors in the CPU's memory can be shared by all")
    if any(map(is_mapped, data if isinstance(data, tuple) else (data,))):
        raise OneByOneError("memory-mapped data are read batch by batch")


def _native(
    members: list[Member],
    options: dict[str, Any],
    count: Callable[[Batch], int],
    total: int,
    flops: float,
    cores: int,
) -> NativeSeeds:
    if options.get("engine") != "native" and not build_pays(len(members) * total, flops):
        raise OneByOneError(f"{len(members)} times {total} steps are not worth a build")
    lr, lr_multiplier, schedule = options.get("lr"), options.get("lr_multiplier"), options.get("schedule")
    optimizers = [
        make_optimizer(options.get("optimizer"), member.parameters, member.guide, lr or 1e-3, lr_multiplier)
        for member in members
    ]
    return NativeSeeds(
        members,
        options.get("objective") or ELBO(),
        optimizers,
        [None if schedule is None else schedule(optimizer) for optimizer in optimizers],
        options.get("max_norm"),
        count,
        BAD_STEPS_IN_A_ROW,
        cores,
    )


def _vectorized(
    members: list[Member], options: dict[str, Any], count: Callable[[Batch], int], flops: float
) -> VectorizedSteps:
    if set(options) - OF_VECTORIZED:
        raise OneByOneError(f"{', '.join(sorted(set(options) - OF_VECTORIZED))} given")
    if flops >= WORTH_A_SECOND_THREAD:
        raise OneByOneError(f"a step has {flops / 1e6:.0f} MFLOP, which fills the processor by itself")
    objective, lr, max_norm = options.get("objective") or ELBO(), options.get("lr"), options.get("max_norm")
    return VectorizedSteps(members, objective, lr or 1e-3, max_norm, count)


def _fit_apart(make_pair: MakePair, seeds: list[int], data: Any, options: dict[str, Any]) -> list[Fit]:
    """Each by :func:`fit`: in joblib's processes if somebody configured more than one, else one after
    another."""
    import joblib

    if joblib.effective_n_jobs(None) == 1 or options.get("callbacks"):
        return [fit(*seeded_pair(make_pair, seed), data, seed=seed, **options) for seed in seeds]
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
