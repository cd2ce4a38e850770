"""Running a model and a guide without touching, or being touched by, the rest of the process.

Pyro keeps parameters in one global store. Two pairs whose modules share names then train each other's
tensors, silently. Everything in this library therefore calls users' code inside :func:`isolated`.
"""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.poutine import runtime
from torch import Tensor, nn

from pyro_vae.devices import forked_streams, seed_streams
from pyro_vae.pairs.modes import is_frozen, meeting_modules

Program = Callable[..., Any]

logger = logging.getLogger(__name__)

SECONDS_OF_SILENCE = 1.0


def empty_store() -> StateDict:
    """The state of a parameter store that holds nothing."""
    return {"params": {}, "constraints": {}}


def owner(program: Callable[..., Any]) -> nn.Module | None:
    """The module whose code this is: a module itself, or the module of a bound method such as ``vae.model``.

    >>> owner(nn.Linear(2, 3))
    Linear(in_features=2, out_features=3, bias=True)
    >>> owner(print) is None
    True
    """
    candidate = getattr(program, "__self__", program)
    return candidate if isinstance(candidate, nn.Module) else None


def modules_of(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The distinct modules behind some models and guides, outermost only."""
    found: dict[int, nn.Module] = {}
    for program in programs:
        module = owner(program)
        if module is not None:
            found.setdefault(id(module), module)
    return list(found.values())


@dataclass
class _Turn:
    """Which thread may run models, and what the process was like before it began."""

    lock: Any = field(default_factory=threading.RLock)
    depth: int = 0
    holder: int = 0
    give_back: Callable[[], None] = field(default=lambda: None)


_turn = _Turn()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Holds back other threads: Pyro's handlers, its parameter store and torch's random stream belong to the
    whole process, so that two fits at once would draw from each other's streams. They take turns instead, and
    the log says so."""
    turn = _turn
    if not turn.lock.acquire(timeout=SECONDS_OF_SILENCE):
        logger.info(
            "this thread waits for another that runs a model: Pyro's handlers, its parameter store and the "
            "random stream belong to the whole process; use processes to fit at the same time"
        )
        turn.lock.acquire()
    if turn.depth == 0:
        turn.holder, turn.give_back = threading.get_ident(), _as_it_is()
    turn.depth += 1
    try:
        yield
    finally:
        turn.depth -= 1
        turn.lock.release()


def _as_it_is() -> Callable[[], None]:
    """What gives the process its parameter store, its random stream and its validation of now back, with no
    handlers at work."""
    store, stream = pyro.get_param_store().get_state(), torch.get_rng_state()
    validation = pyro.distributions.is_validation_enabled()

    def give_back() -> None:
        runtime._PYRO_STACK.clear()
        pyro.clear_param_store()
        pyro.get_param_store().set_state(store)
        torch.set_rng_state(stream)
        pyro.enable_validation(validation)

    return give_back


def _after_fork() -> None:
    """In a forked child the thread that forked is alone: nobody would ever end another's turn, nor take away
    what it has set up."""
    global _turn
    before, _turn = _turn, _Turn()
    if before.depth > 0 and before.holder != threading.get_ident():
        torch.set_num_threads(1)  # OpenMP's threads did not come along either, and would be waited for
        before.give_back()


os.register_at_fork(after_in_child=_after_fork)


def blocks_around() -> int:
    """How many blocks of this library's, with parameter stores of their own, this thread runs in."""
    return _turn.depth if _turn.holder == threading.get_ident() else 0


@contextmanager
def isolated(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    state: StateDict | None = None,
    seed: int | None = None,
) -> Iterator[StateDict]:
    """A parameter store and a random stream of one's own, Pyro's validation off; given back as they were.

    Threads take turns: see :func:`one_at_a_time`.

    Parameters
    ----------
    model, guide
        The pair that will run inside.
    state
        What the parameter store holds inside. By default it is empty, or, where the model or the guide is a
        plain function (whose parameters can be nowhere else), a copy of what the user's store holds now.
    seed
        Seeds torch's generators inside; ``None`` goes on with the current stream. Either way the stream
        outside does not move.

    Yields
    ------
    StateDict
        Filled with the store's contents when the block ends without an error.

    Examples
    --------
    >>> def model():
    ...     pyro.param("a", torch.zeros(()))
    >>> with isolated(model, model, state=empty_store()) as inside:
    ...     model()
    >>> list(inside["params"]), list(pyro.get_param_store())
    (['a'], [])
    """
    with one_at_a_time():
        yield from _isolated(model, guide, state, seed)


def _isolated(
    model: Callable[..., Any], guide: Callable[..., Any], state: StateDict | None, seed: int | None
) -> Iterator[StateDict]:
    store = pyro.get_param_store()
    if state is None:
        functions = owner(model) is None or owner(guide) is None
        state = store.get_state() if functions else empty_store()
    with (
        forked_streams(),
        pyro.validation_enabled(False),
        store.scope(state),
        warnings.catch_warnings(),
    ):
        # Pyro says so of every frozen parameter; to freeze a model and fit a guide to it is no mistake.
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        if seed is not None:
            seed_streams(seed)
        yield state


@contextmanager
def training_mode(programs: Sequence[Any], *, training: bool) -> Iterator[None]:
    """Sets every module's training flag inside, and gives each back as it was.

    Evaluation mode also reaches the modules that plain functions call. Training mode leaves alone what a user
    has frozen and put into evaluation mode.
    """
    flags: dict[int, tuple[nn.Module, bool]] = {}

    def switch(module: nn.Module) -> None:
        if training and is_frozen(module):
            return
        if id(module) not in flags:
            flags[id(module)] = module, module.training
            module.training = training
        for part in module.children():
            switch(part)

    try:
        for root in modules_of(*programs):
            switch(root)
        functions = any(owner(program) is None for program in programs)
        with meeting_modules(switch) if functions and not training else nullcontext():
            yield
    finally:
        for module, flag in flags.values():
            module.training = flag


@contextmanager
def untouched_buffers(*programs: Program) -> Iterator[None]:
    """Gives buffers (batch norm's running statistics) their values back at the end, and leaves frozen what a
    user has frozen; also of modules that plain functions call.

    Pyro unfreezes the parameters of a ``PyroModule`` when they are read for the first time.
    """
    saved: dict[int, tuple[Tensor, Tensor]] = {}
    frozen: list[nn.Parameter] = []

    def note(module: nn.Module) -> None:
        frozen.extend(parameter for parameter in module.parameters() if not parameter.requires_grad)
        for buffer in module.buffers():
            # An expanded tensor has one memory for many elements: nobody can write into it, we neither.
            expanded = any(n > 1 and s == 0 for n, s in zip(buffer.shape, buffer.stride(), strict=True))
            if id(buffer) not in saved and not expanded:
                saved[id(buffer)] = buffer, buffer.clone()

    for root in modules_of(*programs):
        note(root)
    functions = any(owner(program) is None for program in programs)
    try:
        with meeting_modules(note) if functions else nullcontext():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.no_grad():
            for buffer, value in saved.values():
                buffer.copy_(value)


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Evaluation mode, in which nothing of the programs' modules moves."""
    with training_mode(programs, training=False), untouched_buffers(*programs):
        yield
