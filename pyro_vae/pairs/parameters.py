"""Which tensors a pair trains, and how the parameters of plain functions travel with a fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.params.param_store import StateDict
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.pairs.isolation import one_at_a_time, owner

__all__ = ["Bound", "PendingStore", "named_tensors", "trainable_parameters"]


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

    Raises
    ------
    ValueError
        If there are none.
    """
    trainable = {
        name: tensor for name, tensor in named_tensors(model, guide, state).items() if tensor.requires_grad
    }
    if not trainable:
        raise ValueError(
            "model and guide have no parameter that requires a gradient, so there is nothing to fit; "
            "give the guide an encoder or pyro.param statements, or unfreeze with requires_grad_(True)"
        )
    return trainable


class PendingStore(Messenger):
    """Gives ``pyro.param`` statements saved values the first time that they run: only they know their
    constraint."""

    def __init__(self, pending: dict[str, Tensor]) -> None:
        super().__init__()
        self.pending = pending

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        store = pyro.get_param_store()
        if name in self.pending and name not in store:
            value = self.pending[name].detach().clone().requires_grad_(True)
            store.set_state({"params": {name: value}, "constraints": {name: msg["kwargs"]["constraint"]}})


@contextmanager
def in_store(state: StateDict, pending: dict[str, Tensor]) -> Iterator[None]:
    """The parameters of a fit's plain functions in Pyro's store, for this block."""
    with one_at_a_time(), pyro.get_param_store().scope(state), PendingStore(pending):
        yield


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
        self.__doc__ = function.__doc__

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
def restore_tensors(tensors: dict[str, Tensor], snapshot: dict[str, Tensor]) -> None:
    """Write a snapshot back in place, so that every alias of a tensor sees it; ``pyro.param`` statements that
    one of the two has not met yet are left alone."""
    for name in tensors.keys() & snapshot.keys():
        tensors[name].copy_(snapshot[name])
