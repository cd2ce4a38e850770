"""Find which tensors a pair trains, and let the parameters of plain functions travel with a fit."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from pyro_vae.pairs.isolation import blocks_around, empty_store, one_at_a_time, owner

MODULE = "$$$"
"""Between the name that ``pyro.module`` was given and the parameter's own."""


def named_tensors(
    model: Callable[..., Any], guide: Callable[..., Any], state: StateDict
) -> dict[str, Tensor]:
    """Every parameter and persistent buffer of a pair by name.

    Modules' are ``model.…`` and ``guide.…``, those of ``pyro.param`` are ``store.…``.

    A tensor that several names share appears once, under the first.
    """
    named: dict[str, Tensor] = {}
    for tag, program in (("model", model), ("guide", guide)):
        module = owner(program)
        if module is not None:
            state_dict = module.state_dict(keep_vars=True)
            named |= {f"{tag}.{name}": value for name, value in state_dict.items() if torch.is_tensor(value)}
    named |= {f"store.{name}": tensor for name, tensor in state["params"].items()}
    distinct: dict[int, str] = {}
    for name, tensor in named.items():
        distinct.setdefault(id(tensor), name)
    return {name: named[name] for name in distinct.values()}


def trainable_parameters(
    model: Callable[..., Any], guide: Callable[..., Any], state: StateDict
) -> dict[str, Tensor]:
    """The leaves that receive gradients, by the names of :func:`named_tensors`.

    Call it after the pair ran once: autoguides and ``pyro.param`` make their parameters on the first call.
    Raises ValueError if there are none."""
    trainable = {
        name: tensor for name, tensor in named_tensors(model, guide, state).items() if tensor.requires_grad
    }
    if not trainable:
        raise ValueError(
            "model and guide have no parameter that requires a gradient, so there is nothing to fit; "
            "give the guide an encoder or pyro.param statements, or unfreeze with requires_grad_(True)"
        )
    return trainable


_IN_PLACE: list[tuple[StateDict, dict[str, Tensor]]] = []
"""The fits whose parameters a ``with`` block has put into Pyro's store, the innermost last."""


@contextmanager
def pending_values(pending: Mapping[str, Tensor]) -> Iterator[None]:
    """Gives ``pyro.param`` statements saved values the first time that they run: only they know their
    constraint. Those of a module's parameters are written into the module, with its buffers.

    The store is asked and no handler put up, since guides run models where no handler sees it. Raises
    ValueError if a statement has a name or a shape that was not saved."""
    if not pending:
        yield
        return
    store: Any = pyro.get_param_store()
    before, make, depth = vars(store).get("setdefault"), store.setdefault, blocks_around()
    restored: set[str] = set()  # the first parameter of a module brings all that the module holds

    def setdefault(name: str, value: Any, constraint: Any = constraints.real) -> Any:
        if name not in store and blocks_around() == depth:
            own: dict[str, Tensor] = {}
            if isinstance(value, nn.Parameter) and name not in restored:
                own = {name: value} | held_beside({name: value})
            _require_saved(name, own, pending)
            if isinstance(value, nn.Parameter):
                restore_tensors(own, pending)
                restored.update(own)
            else:
                leaf = pending[name].detach().clone().requires_grad_(True)
                store.set_state({"params": {name: leaf}, "constraints": {name: constraint}})
        return make(name, value, constraint)

    store.setdefault = setdefault
    try:
        yield
    finally:
        del store.setdefault
        if before is not None:
            store.setdefault = before


def _require_saved(name: str, own: Mapping[str, Tensor], pending: Mapping[str, Tensor]) -> None:
    if name not in pending:
        raise ValueError(
            f"the saved fit has no parameter {name!r}, which this pair has; give the pair that was fitted"
        )
    for where, tensor in own.items():
        if where in pending and tensor.shape != pending[where].shape:
            raise ValueError(
                f"the saved fit has {where!r} of shape {tuple(pending[where].shape)}, and this pair of "
                f"{tuple(tensor.shape)}; give the pair that was fitted"
            )


@contextmanager
def in_store(state: StateDict, pending: dict[str, Tensor]) -> Iterator[None]:
    """The parameters of a fit's plain functions in Pyro's store, for this block."""
    with one_at_a_time(), pyro.get_param_store().scope(state), pending_values(pending):
        _IN_PLACE.append((state, pending))
        try:
            yield
        finally:
            _IN_PLACE.pop()


def start_of(*programs: Callable[..., Any]) -> tuple[StateDict, dict[str, Tensor]]:
    """What the store of a new fit begins with: copies of the parameters that an earlier fit has bound to the
    functions, or that the block around has put in place; and those saved ones that no call has met yet. The
    parameters of modules stay the modules' own.

    >>> start_of(print)
    ({'params': {}, 'constraints': {}}, {})
    """
    earlier = [(p.state, p.pending) for p in programs if isinstance(p, Bound)] or _IN_PLACE[-1:]
    start = empty_store()
    unmet: dict[str, Tensor] = {}
    for state, pending in earlier:
        start["constraints"].update(state["constraints"])
        for name, value in state["params"].items():
            own = isinstance(value, nn.Parameter)
            start["params"][name] = value if own else value.detach().clone().requires_grad_()
        unmet |= {name: value for name, value in pending.items() if name not in state["params"]}
    return start, unmet


def unbound(program: Callable[..., Any]) -> Callable[..., Any]:
    """The user's own function, where an earlier fit has bound parameters to it."""
    return program.function if isinstance(program, Bound) else program


def held_beside(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers and frozen parameters of the modules that ``pyro.module`` has registered, by the names that it
    would give them. Pyro knows the parameters that are trained alone; their modules are found by them."""
    registered = {
        name: value
        for name, value in parameters.items()
        if MODULE in name and isinstance(value, nn.Parameter)
    }
    if not registered:
        return {}
    owners = {id(value): name.split(MODULE, 1) for name, value in registered.items()}
    beside: dict[str, Tensor] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), nn.Module):
            continue
        for local, value in thing.named_parameters():
            prefix, full = owners.get(id(value), ("", ""))
            if prefix and full == local:
                others = (*thing.named_buffers(), *thing.named_parameters())
                beside |= {f"{prefix}{MODULE}{where}": tensor for where, tensor in others}
                break
    return {name: tensor for name, tensor in beside.items() if name not in registered}


class Bound:
    """A plain function with the parameters that a fit gave it: call it like the function.

    The parameters are in Pyro's store only while it runs, so fits with equal parameter names do not meet.
    """

    def __init__(
        self, function: Callable[..., Any], state: StateDict, pending: dict[str, Tensor] | None = None
    ) -> None:
        self.function = function
        self.state = state
        self.pending = {} if pending is None else pending
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = getattr(function, "__doc__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.parameters():
            return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self.__name__} with {len(self.state['params'] | self.pending)} fitted parameters>"

    @contextmanager
    def parameters(self) -> Iterator[None]:
        """Puts the parameters in place for code that calls the function itself."""
        with in_store(self.state, self.pending):
            yield


def bound(
    program: Callable[..., Any], state: StateDict, pending: dict[str, Tensor] | None = None
) -> Callable[..., Any]:
    """The program as a fit hands it out: modules as they are, plain functions with their parameters."""
    return (
        program
        if isinstance(program, nn.Module) or owner(program) is not None
        else Bound(program, state, pending)
    )


def copy_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A snapshot that later training does not change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def restore_tensors(tensors: Mapping[str, Tensor], snapshot: Mapping[str, Tensor]) -> None:
    """Write a snapshot back in place, so that every alias of a tensor sees it; ``pyro.param`` statements that
    one of the two has not met yet are left alone."""
    for name in tensors.keys() & snapshot.keys():
        tensors[name].copy_(snapshot[name])
