"""``fit``: stochastic variational inference for any Pyro pair."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pyro import infer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.arguments import check_programs
from pyro_vae.batches.batches import Batch, Batches, DrawnAnew, as_batches
from pyro_vae.batches.rows import as_tensors
from pyro_vae.batches.shares import share_of
from pyro_vae.devices import resolve_device, threads_for
from pyro_vae.pairs.isolation import Program, isolated, training_mode
from pyro_vae.pairs.minibatches import check_minibatches
from pyro_vae.pairs.numbers import may_hold_integers, meant_as_floats
from pyro_vae.pairs.parameters import bound, pending_values, start_of, unbound
from pyro_vae.pairs.placement import placed
from pyro_vae.pairs.reminding import remember
from pyro_vae.pairs.running import check_support, float_dtype, run_once, support_check
from pyro_vae.pairs.support import refuse_impossible
from pyro_vae.progress import progress_bar
from pyro_vae.svi.arguments import check_options
from pyro_vae.svi.engines.choice import chain_of, check_engine
from pyro_vae.svi.engines.optimizers import Optimization, check_length
from pyro_vae.svi.engines.steps import Task
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loop import EarlyStopping, Loop
from pyro_vae.svi.objectives.augmented import Augmented
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.objectives.pyro_elbo import as_objective
from pyro_vae.svi.objectives.whole_data import WholeData
from pyro_vae.svi.parallel.launch import local_device
from pyro_vae.svi.parallel.ranks import OneProcess, joined
from pyro_vae.svi.result import Fit
from pyro_vae.svi.state.fit_state import identity_of
from pyro_vae.svi.state.resuming import Checkpoint, open_checkpoint


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Callable[..., Optimizer] | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    objective: Objective | infer.ELBO | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    engine: str = "auto",
    validation: Any = None,
    patience: int | None = None,
    lr_multiplier: str | None = None,
    max_norm: float | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    distributed: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[EpochRecord], None]] = (),
) -> Fit:
    """Fit a guide, and the parameters of its model, by minibatch SVI.

    Any Pyro pair ``model(x)``, ``guide(x)`` will do whose latents sit in a plate over observations (dim −1):
    modules, autoguides, plain functions with ``pyro.param``. Nothing of it touches Pyro's global parameter
    store, the random stream, the validation flag or the modules' training flags, so any number of pairs can
    be fitted in one process, with equal names or not.

    Parameters
    ----------
    model, guide
        The pair; modules are trained in place and moved to the device.
    data
        A tensor, an array, a data frame or another array-like (observation first; a list of arrays has one
        for each), a tuple of them (passed as positional arguments), a ``Dataset`` or a ``DataLoader``.
        Tensors are kept on the device; a memory-mapped array (``numpy.load(path, mmap_mode="r")``) stays in
        its file and is read batch by batch. Floating point is cast to the dtype of the parameters, and so are
        integers that the pair does not take as they are.
    epochs, steps
        How long: passes over the data, or optimizer steps; 100 epochs if neither is given, the earlier end if
        both are.
    batch_size
        Observations per step; the last batch of an epoch may be smaller. A batch of all the data keeps them
        in their order, for guides with a parameter for each row and for series.
    lr, optimizer
        The learning rate, and a factory such as ``torch.optim.AdamW`` that is called as ``optimizer(groups,
        lr=lr)``. By default Adam.
    schedule
        A factory of a learning-rate schedule, called with the optimizer; it advances once per step.
    objective
        :class:`~pyro_vae.svi.ELBO` by default; or :class:`~pyro_vae.svi.IWAE`,
        :class:`~pyro_vae.svi.Renyi`, :class:`~pyro_vae.svi.STL`; or any ELBO of Pyro, such as
        ``TraceEnum_ELBO(max_plate_nesting=1)`` for latents that are enumerated, whose history has the loss
        alone.
    seed
        Of the data's order and of the noise; two guides fitted with one seed see the same batches and the
        same draws.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; or ``"auto"``: CUDA where there is one and the pair
        follows there, the CPU otherwise. What a pair makes by ``torch.zeros(…)`` follows, and so do modules
        that plain functions register by ``pyro.module``; tensors that it holds besides its parameters and
        buffers do not.
    engine
        ``"eager"`` runs Pyro at every step. ``"captured"`` replays the graph that Pyro leaves behind when it
        runs once. ``"native"`` makes that graph a C++ function that takes whole steps, many per call (needs a
        C++ compiler, data in the CPU's memory, and Adam). ``"cuda-graph"`` records whole steps as a CUDA
        graph, which starts each with one call. All take the same steps, native ones up to rounding.
        ``"auto"`` is the CUDA graph on CUDA; on the CPU it is native if the fit is long enough to pay for the
        build (about 6,500 small steps, fewer large ones: :func:`~pyro_vae.svi.engines.choice.build_pays`)
        and captured otherwise. What cannot be native or recorded is captured, what cannot be captured runs
        eagerly, and the log says why. A graph is compared with Pyro when it is built, when a plain attribute
        of the modules has changed, and every 250 steps (whole steps: 2,000).
    validation
        Held-out data in the form of ``data``; its loss is evaluated after every epoch with the
        same noise.
    patience
        Stop when the validation loss has not improved for this number of epochs, and go back to the best
        parameters.
    lr_multiplier
        ``"matched"`` gives the layers that put out the raw scale their own rate lr / slope, where slope is d
        log σ / d raw at the start, so that log σ moves equally fast under every map (exactly so for
        ``logvar`` and ``logstd`` under Adam).
    max_norm
        Clips the norm of the whole gradient.
    checkpoint
        A file, or :class:`~pyro_vae.svi.Checkpoint` with its interval. The state of the fit is written there
        every 30 seconds and at the end; where the file exists, the fit goes on from it, and on the CPU ends
        with the bits of a fit that was never interrupted.
    distributed
        Spread this fit over the processes that ``torchrun`` has started, or over those of the process group
        that you have initialized. Each calls ``fit`` with the same arguments and takes its share of every
        batch (``batch_size`` is that of all together), and all take the same step. The first one writes the
        checkpoint and shows the progress; callbacks run on all.
    progress
        A bar on a terminal, lines of the log elsewhere.
    callbacks
        Each is called with an :class:`~pyro_vae.svi.history.EpochRecord` after every epoch. One that has
        ``state_dict()`` and ``load_state_dict(state)`` is part of a checkpoint. It may change what the
        programs read, and not which parameters are trained: make a fit of each such stage.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError, TypeError
        For arguments that cannot be used, or a checkpoint of another fit; the message names the argument and
        the remedy.
    BlockingIOError
        If another process is writing the checkpoint.
    RankError
        If another process of a distributed fit fails; the message names it.
    NonFiniteError
        If three steps in a row have a loss or gradient that is not finite. Such steps are skipped; the
        parameters are the last good ones.

    Examples
    --------
    >>> import torch, pyro_vae
    >>> x = torch.randn(256, 5)
    >>> model = pyro_vae.models.VAE(torch.nn.Linear(2, 5), 2, "normal")
    >>> guide = pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(5, 16), scale="softplus")
    >>> fitted = pyro_vae.fit(model, guide, x, epochs=2, progress=False)
    >>> fitted.history.sizes["step"]
    4
    """
    (state, unmet), model, guide = start_of(model, guide), unbound(model), unbound(guide)
    named = {"lr": lr, "batch_size": batch_size, "seed": seed, "lr_multiplier": lr_multiplier}
    numbers = {"epochs": epochs, "steps": steps, "patience": patience, "max_norm": max_norm}
    makers = {"objective": objective, "optimizer": optimizer, "schedule": schedule, "callbacks": callbacks}
    check_programs(model=model, guide=guide)
    check_options(named | numbers | makers | {"engine": engine, "validation": validation})
    how = Optimization(as_objective(objective), optimizer, schedule, lr, lr_multiplier, max_norm)
    if isinstance(data, DrawnAnew):
        how = dataclasses.replace(how, objective=Augmented(how.objective, data.draw))
    wanted = local_device(resolve_device(device)) if distributed else resolve_device(device)
    check_engine(engine, wanted)
    optional = device == "auto" and engine != "cuda-graph" and not distributed
    batches, held_out, place = _on_device(
        (model, guide), how, data, validation, wanted, batch_size=batch_size, seed=seed, optional=optional
    )
    with (
        joined(distributed, place) as ranks,
        open_checkpoint(checkpoint, ranks) as saver,
        isolated(model, guide, state=state, seed=seed),
        training_mode((model, guide), training=True),
    ):
        share = share_of(batches, ranks.rank, ranks.size)
        with pending_values(unmet):
            task, flops = _task_of((model, guide), how, batches, share, ranks, held_out)
        total = fit_length(epochs, steps, len(batches))
        check_length(task.schedule, total)
        chain = chain_of(task, saver.engine(engine), steps=total, flops=flops)
        stopping = None if patience is None else EarlyStopping(patience)
        loop = Loop(task, chain, by_name=engine != "auto", stopping=stopping)
        identity = identity_of(loop, batches, held_out, **named, engine=engine, device=place.type)
        saver.begin(loop, batches, total, callbacks, identity)
        started = time.perf_counter() - saver.seconds_before
        ranks.set_stream(seed, loop.step)
        with threads_for(flops), progress_bar(total, "fit", enabled=progress and ranks.leads) as show:
            callbacks = [lambda record: show(record.step, f"loss {record.loss:.4g} nats"), *callbacks]
            loop.run(share, total, held_out if ranks.leads else None, callbacks, saver.write_if_due)
        saver.try_to_write()
        if loop.stopping is not None:
            loop.stopping.restore_best(loop.tensors())
        rate = loop.step / max(time.perf_counter() - started, 1e-9)
    programs = bound(model, state), bound(guide, state)
    remember(*programs)
    return Fit(*programs, loop.recorder, seed, str(place), loop.engine, rate, _state=state)


def _on_device(
    pair: tuple[Program, Program],
    how: Optimization,
    data: Any,
    validation: Any,
    wanted: torch.device,
    *,
    batch_size: int,
    seed: int,
    optional: bool,
) -> tuple[Batches, Batch | None, torch.device]:
    """The batches of the data and the held-out data, on the device where the pair is from now on. What the
    pair does not take as integers becomes floating point."""
    dtype, check = float_dtype(*pair), support_check(pair[0])

    def batches_on(place: torch.device, floats: Sequence[int]) -> Batches:
        return as_batches(
            data, batch_size=batch_size, seed=seed, device=place, dtype=dtype, floats=floats, check=check
        )

    floats: Sequence[int] = []
    if may_hold_integers(data):
        first = batches_on(torch.device("cpu"), []).first()
        floats = meant_as_floats(*pair, first, dtype, seed=seed)
    place, batches = placed(
        *pair,
        functools.partial(how.objective.estimate, *pair),
        functools.partial(batches_on, floats=floats),
        wanted,
        seed=seed,
        optional=optional,
    )
    held_out = None
    if validation is not None:
        held_out = as_tensors(validation, device=place, dtype=dtype, name="validation", floats=floats)
    check_support(pair[0], validation, "validation")
    return batches, held_out, place


def _task_of(
    pair: tuple[Program, Program],
    how: Optimization,
    batches: Batches,
    share: Batches,
    ranks: OneProcess,
    held_out: Batch | None,
) -> tuple[Task, float]:
    """What the steps work on, and the floating-point operations of one. The pair runs for the first time."""
    first = share.first() if batches is share else batches.first()
    anew = isinstance(how.objective, Augmented)
    drawn = how.objective.batch(first) if isinstance(how.objective, Augmented) else first
    plate = check_minibatches(*pair, batches, drawn, anew=anew)
    if plate is not None:
        how = dataclasses.replace(how, objective=WholeData(how.objective, plate, batches.observations))
    task, flops = how.of(*pair, share.first(), ranks)
    if held_out is not None:
        with torch.no_grad():
            refuse_impossible(run_once(*pair, held_out, "validation"), "validation")
    return task, flops


def fit_length(epochs: int | None, steps: int | None, batches: int) -> int:
    """Count the steps of a fit whose epochs have ``batches`` of them."""
    if not (epochs or steps):
        return 100 * batches
    return int(min(steps or math.inf, (epochs or math.inf) * batches))
