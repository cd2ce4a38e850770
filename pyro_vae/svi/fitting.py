"""``fit``: stochastic variational inference for any Pyro pair."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.arguments import check_numbers, check_programs
from pyro_vae.batches.batches import Batches, DrawnAnew, as_batches, as_tensors
from pyro_vae.batches.shares import share_of
from pyro_vae.devices import resolve_device
from pyro_vae.guides.heads import raw_parameters
from pyro_vae.pairs.isolation import Program, empty_store, isolated, owner, training_mode
from pyro_vae.pairs.numbers import may_hold_integers, meant_as_floats
from pyro_vae.pairs.parameters import bound, trainable_parameters
from pyro_vae.pairs.placement import placed
from pyro_vae.pairs.running import check_support, float_dtype, run_once, set_up, support_check
from pyro_vae.progress import progress_bar
from pyro_vae.svi.arguments import check_choices, check_optimizer, check_schedule
from pyro_vae.svi.engines.captured import EagerEngine
from pyro_vae.svi.engines.choice import check_engine, make_engine
from pyro_vae.svi.engines.threads import threads_for
from pyro_vae.svi.history import EpochRecord
from pyro_vae.svi.loop import EarlyStopping, Loop
from pyro_vae.svi.objectives.augmented import Augmented
from pyro_vae.svi.objectives.elbo import ELBO, Objective
from pyro_vae.svi.parallel.launch import local_device
from pyro_vae.svi.parallel.ranks import joined
from pyro_vae.svi.result import Fit
from pyro_vae.svi.state.identity import identity_of
from pyro_vae.svi.state.resuming import Checkpoint, as_checkpoint, open_checkpoint

__all__ = ["fit", "fit_length", "make_optimizer"]


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
    objective: Objective | None = None,
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
        Observations per step; the last batch of an epoch may be smaller.
    lr, optimizer
        The learning rate, and a factory such as ``torch.optim.AdamW`` that is called as ``optimizer(groups,
        lr=lr)``. By default Adam.
    schedule
        A factory of a learning-rate schedule, called with the optimizer; it advances once per step.
    objective
        :class:`~pyro_vae.svi.ELBO` by default; or :class:`~pyro_vae.svi.IWAE`,
        :class:`~pyro_vae.svi.Renyi`, :class:`~pyro_vae.svi.STL`.
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
        C++ compiler, data in the CPU's memory, and Adam). ``"inductor"`` compiles the graph with torch's
        compiler (10 to 15 seconds; needs a C++ compiler). ``"cuda-graph"`` records whole steps as a CUDA
        graph, which starts each with one call; it has only been tested without a GPU. All take the same
        steps, the compiled ones up to rounding. ``"auto"`` is the CUDA graph on CUDA; on the CPU it is native
        if the fit is long enough to pay for the build (about 6,500 small steps, fewer large ones:
        :func:`~pyro_vae.svi.engines.many_steps.build_pays`) and captured otherwise. What cannot be native,
        compiled or recorded is captured, what cannot be captured runs eagerly, and the log says why. A graph
        is compared with Pyro when it is built, when a plain attribute of the modules has changed, and every
        250 steps (whole steps: 2,000).
    validation
        Held-out data in the form of ``data``; its loss is evaluated after every epoch with the
        same noise.
    patience
        Stop when the validation loss has not improved for so many epochs, and go back to the best parameters.
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
        ``state_dict()`` and ``load_state_dict(state)`` is part of a checkpoint.

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
    objective = ELBO() if objective is None else objective
    check_programs(model=model, guide=guide)
    check_choices(
        objective=objective,
        engine=engine,
        lr_multiplier=lr_multiplier,
        optimizer=optimizer,
        schedule=schedule,
        callbacks=callbacks,
    )
    check_numbers(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        patience=patience,
        max_norm=max_norm,
    )
    if isinstance(data, DrawnAnew):
        objective = Augmented(objective, data.draw)
    if patience is not None and validation is None:
        raise ValueError(
            f"patience is {patience}, but there is no validation data to be patient about; give validation="
        )
    resolved = resolve_device(device)
    if distributed:
        resolved = local_device(resolved)
    check_engine(engine, resolved)
    dtype = float_dtype(model, guide)

    check = support_check(model)

    def batches_on(device: torch.device) -> Batches:
        return as_batches(
            data, batch_size=batch_size, seed=seed, device=device, dtype=dtype, floats=meant, check=check
        )

    meant: Sequence[int] = []
    if may_hold_integers(data):
        first = batches_on(torch.device("cpu")).first()
        meant = meant_as_floats(model, guide, first, dtype, seed=seed)

    optional = device == "auto" and engine != "cuda-graph" and not distributed
    resolved, batches = placed(
        model,
        guide,
        lambda batch: objective.estimate(model, guide, batch),
        batches_on,
        resolved,
        seed=seed,
        optional=optional,
    )
    held_out = (
        None
        if validation is None
        else as_tensors(validation, device=resolved, dtype=dtype, name="validation", floats=meant)
    )
    check_support(model, validation, "validation")
    state = empty_store()
    with (
        joined(distributed, resolved) as ranks,
        open_checkpoint(None if checkpoint is None else as_checkpoint(checkpoint), ranks) as saver,
        isolated(model, guide, state=state, seed=seed),
        training_mode((model, guide), training=True),
    ):
        share = share_of(batches, ranks.rank, ranks.size)
        first = share.first()
        drawn = objective.batch(first) if isinstance(objective, Augmented) else first
        count, flops = set_up(model, guide, drawn)
        if held_out is not None:
            with torch.no_grad():
                run_once(model, guide, held_out, "validation")
        parameters = trainable_parameters(model, guide, pyro.get_param_store().get_state())
        ranks.begin(model, guide, objective, parameters, first, rescaled=count(first) != len(first[0]))
        made = make_optimizer(optimizer, parameters, guide, lr, lr_multiplier)
        asked = engine if saver is None else saver.engine(engine)
        loop = Loop(
            model,
            guide,
            objective,
            parameters,
            EagerEngine(objective, model, guide, list(parameters.values())),
            made,
            None if schedule is None else _make_schedule(schedule, made),
            max_norm,
            count,
            stopping=None if patience is None else EarlyStopping(patience),
            ranks=ranks,
        )
        total = fit_length(epochs, steps, len(batches))
        make_engine(loop, batches, asked, steps=total, flops=flops)
        if saver is not None:
            options = {"lr": lr, "batch_size": batch_size, "seed": seed, "lr_multiplier": lr_multiplier}
            options |= {"engine": engine, "device": resolved.type}
            saver.begin(loop, batches, total, callbacks, identity_of(loop, batches, held_out, **options))
        started = time.perf_counter() - (0.0 if saver is None else saver.seconds_before)
        ranks.set_stream(seed, loop.step)
        with threads_for(flops), progress_bar(total, "fit", enabled=progress and ranks.leads) as show:
            loop.run(
                share,
                total,
                held_out if ranks.leads else None,
                [lambda r: show(r.step, f"loss {r.loss:.4g} nats"), *callbacks],
                *([] if saver is None else [saver.write_if_due]),
            )
        if saver is not None:
            saver.try_to_write()
        if loop.stopping is not None:
            loop.stopping.restore_best(loop.tensors())
        seconds = time.perf_counter() - started
    return Fit(
        bound(model, state),
        bound(guide, state),
        loop.recorder,
        seed,
        str(resolved),
        loop.engine_name,
        loop.step / max(seconds, 1e-9),
        _state=state,
    )


def fit_length(epochs: int | None, steps: int | None, batches: int) -> int:
    """Steps of a fit with so many batches in an epoch."""
    if not (epochs or steps):
        return 100 * batches
    return int(min(steps or math.inf, (epochs or math.inf) * batches))


def make_optimizer(
    factory: Callable[..., Optimizer] | None,
    parameters: dict[str, Tensor],
    guide: Program,
    lr: float,
    lr_multiplier: str | None,
) -> Optimizer:
    """The optimizer; under ``lr_multiplier="matched"`` the raw scales are a group each, with rate lr / slope.

    Adam divides a gradient by its own size plus eps. The gradient of raw is that of log σ times the slope, so
    eps takes the slope too: then the step of raw is that of log σ / slope, exactly, and log σ moves as it
    would if the optimizer moved it itself.
    """
    factory = functools.partial(torch.optim.Adam, fused=True) if factory is None else factory
    slopes = _raw_slopes(guide) if lr_multiplier == "matched" else {}
    plain = [parameter for parameter in parameters.values() if id(parameter) not in slopes]
    made = factory([{"params": plain}] if plain else [], lr=lr)
    check_optimizer(made)
    for parameter in parameters.values():
        if id(parameter) in slopes:
            slope = slopes[id(parameter)]
            group: dict[str, Any] = {"params": [parameter], "lr": lr / slope}
            if "eps" in made.defaults:
                group["eps"] = made.defaults["eps"] * slope
            made.add_param_group(group)
    return made


def _make_schedule(factory: Callable[[Optimizer], LRScheduler], optimizer: Optimizer) -> LRScheduler:
    made = factory(optimizer)
    check_schedule(made)
    return made


def _raw_slopes(guide: Program) -> dict[int, float]:
    """d log σ / d raw at the start, by the identity of each parameter that puts out a raw scale."""
    module = owner(guide)
    return (
        {}
        if module is None
        else {id(parameter): slope for parameter, slope in raw_parameters(module).values()}
    )
