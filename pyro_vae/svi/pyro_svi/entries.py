"""One captured loss: its graph, what it was captured for, and how it is replayed."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from pyro_vae.devices import forked_streams
from pyro_vae.graphs.guards import Guard, as_input, lifted_places
from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.tracing import capture
from pyro_vae.svi.pyro_svi.signatures import Call, rebuilt
from pyro_vae.svi.pyro_svi.watching import LossWatch, loss_and_parameters, names_of, without_own_checks

logger = logging.getLogger(__name__)

Loss = Callable[..., Any]
"""``loss(*args, **kwargs)`` of the pair, calling ``backward`` or not."""


@dataclass
class Outcome:
    """The loss and the gradients of one step, None where a parameter took no part."""

    loss: Any
    gradients: list[Tensor | None]

    @property
    def is_finite(self) -> bool:
        """Whether every number of the loss is."""
        return all(map(math.isfinite, self.numbers))

    @property
    def numbers(self) -> list[float]:
        """That the loss is made of."""
        return [x.item() if isinstance(x, Tensor) else float(x) for x in tree_leaves(self.loss)]


@dataclass(repr=False)
class Entry:
    """A captured loss."""

    guard: Guard
    programs: list[Any]
    """Among the arguments: kept, since no other object may get their identity."""
    parameters: list[Tensor]
    names: list[str]
    floats: list[float]
    lifts_floats: bool
    graph: Callable[..., Sequence[Tensor]]
    spec: TreeSpec
    """How the loss is made of numbers."""
    takes_part: list[bool]
    """Which parameters have a gradient."""
    replays: int = 0
    next_comparison: int = 1
    plan: Any = field(default=None)
    """How the optimizer moves these parameters."""

    def fits(self, call: Call) -> bool:
        """Whether nothing has changed that the graph holds fixed."""
        known = pyro.get_param_store()._params
        return (
            (self.lifts_floats or call.floats == self.floats)
            and all(
                known.get(name) is p and p.requires_grad
                for name, p in zip(self.names, self.parameters, strict=True)
            )
            and self.guard.holds()
        )

    def replay(self, call: Call) -> Outcome:
        """The loss and gradients by the graph."""
        floats = [as_input(x) for x in call.floats] if self.lifts_floats else ()
        with torch.no_grad():
            outputs = self.graph(*self.parameters, *call.tensors, *floats, *self.guard.input_values())
        count = self.spec.num_leaves
        numbers = [output.item() for output in outputs[:count]]
        gradients = iter(outputs[count:])
        return Outcome(
            numbers[0] if count == 1 else tree_unflatten(numbers, self.spec),
            [next(gradients) if moves else None for moves in self.takes_part],
        )


def make_entry(
    loss: Loss,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: Call,
    parameters: list[Tensor],
    guard: Guard,
    *,
    lifts_floats: bool,
    gradients: bool,
) -> Entry:
    """Trace a loss once, for calls like this one.

    The program runs once more: the random streams are left where they were, buffers are not. Raises whatever
    tracing raises.
    """
    watch = LossWatch(parameters)
    found: dict[str, Any] = {}
    aliases = [tensor.detach() for tensor in call.tensors]  # of their own: the program may hold them, too
    floats = [as_input(x) for x in call.floats] if lifts_floats else []
    count, held = len(aliases), [value.detach() for value in guard.input_values()]

    def traced(*inputs: Tensor) -> list[Tensor]:
        numbers = list(inputs[count : count + len(floats)]) if lifts_floats else list(call.floats)
        parts = [*args, *kwargs.values()]
        own = rebuilt(parts, list(inputs[:count]), numbers)
        named = dict(zip(kwargs, own[len(args) :], strict=True))
        with lifted_places(guard.inputs, inputs[count + len(floats) :]), without_own_checks():
            value, asked = loss_and_parameters(lambda: loss(*own[: len(args)], **named))
        if {id(p) for p in asked} != {id(p) for p in parameters}:
            raise ValueError("the program asks for other parameters at each run")
        leaves, found["spec"] = tree_flatten(value)
        terms = [_term(leaf, parameters) for leaf in leaves]
        terms[0] = _if_valid(terms[0], watch.validity)
        found["gradients"] = [g is not None for g in watch.gradients]
        moved = zip(parameters, watch.gradients, strict=True)
        return [*terms, *(_laid_out_like(p, g) for p, g in moved if g is not None)]

    with forked_streams(), torch.set_grad_enabled(gradients), _no_gradients_left(parameters):
        graph = capture(traced, [*aliases, *floats, *held], lifted=parameters, watch=watch)
    guard.freeze(watch.numbers)
    return Entry(
        guard,
        call.programs,
        parameters,
        names_of(parameters),
        list(call.floats),
        lifts_floats,
        make_replay(graph),
        found["spec"],
        found["gradients"],
    )


@contextmanager
def _no_gradients_left(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Raises if the loss leaves gradients on the parameters itself."""
    before = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        yield
        if any(p.grad is not None for p in parameters):
            raise ValueError("the loss finds gradients by another way than loss.backward()")
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def _term(leaf: Any, parameters: Sequence[Tensor]) -> Tensor:
    if isinstance(leaf, Tensor):
        if leaf.numel() != 1:
            raise ValueError(f"the loss has shape {tuple(leaf.shape)} and is no number")
        return detach_provenance(leaf).detach()
    device = parameters[0].device if parameters else None
    return torch.tensor(float(leaf), dtype=torch.float64, device=device)


def _if_valid(loss: Tensor, validity: Sequence[Tensor]) -> Tensor:
    """NaN if a distribution would have refused an argument or a sample, so that Pyro itself says so."""
    valid: Tensor | None = None
    for check in map(detach_provenance, validity):
        holds = check.all().to(loss.device)
        valid = holds if valid is None else valid & holds
    return loss if valid is None else torch.where(valid, loss, math.nan)


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Fused optimizers walk through memory and not through indices."""
    if gradient.stride() == parameter.stride() and gradient.dtype == parameter.dtype:
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
