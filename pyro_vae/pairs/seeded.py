"""Pairs made after a seed, one for each fit, that share no parameter."""

from collections.abc import Callable, Iterator

import torch

from pyro_vae.arguments import check_programs, kind
from pyro_vae.devices import forked_streams
from pyro_vae.graphs.surroundings import places_around
from pyro_vae.pairs.isolation import Program, one_at_a_time, owner
from pyro_vae.pairs.parameters import unbound

MakePair = Callable[[], tuple[Program, Program]]


def seeded_pair(make_pair: MakePair, seed: int) -> tuple[Program, Program]:
    """Make a pair after ``torch.manual_seed(seed)``; the stream outside does not move."""
    with one_at_a_time(), forked_streams():
        torch.manual_seed(seed)
        pair = make_pair()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"make_pair made {kind(pair)}; let it return a model and a guide")
    check_programs(model=pair[0], guide=pair[1])
    return pair


def require_new(pair: tuple[Program, Program], others: list[tuple[Program, Program]]) -> None:
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
