"""Buffers of modules that plain functions hold and nobody trains: Pyro's store knows nothing of these."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_vae.graphs.surroundings import places_around
from pyro_vae.pairs.isolation import Program, owner
from pyro_vae.pairs.parameters import unbound

FROZEN = "frozen."
"""Begins the names of such buffers in a saved fit."""


def frozen_buffers(*programs: Program) -> dict[str, Tensor]:
    """The persistent buffers of every module that a plain function reaches and that has no parameter to
    train, by the name that the function has for the module.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(2).requires_grad_(False)
    >>> list(frozen_buffers(lambda x: norm(x)))
    ['frozen.norm.running_mean', 'frozen.norm.running_var', 'frozen.norm.num_batches_tracked']
    """
    functions = [unbound(program) for program in programs if owner(program) is None]
    found: dict[str, Tensor] = {}
    inside: set[int] = set()
    names: set[str] = set()
    for place in places_around(functions)[0] if functions else ():
        module = place.value
        if not isinstance(module, nn.Module) or id(module) in inside:
            continue
        inside |= {id(part) for part in module.modules()}
        if any(parameter.requires_grad for parameter in module.parameters()):
            continue
        name = place.name
        while name in names:  # two functions may call different modules alike
            name += "'"
        names.add(name)
        parameters = {local for local, _ in module.named_parameters()}
        buffers = {k: t for k, t in module.state_dict(keep_vars=True).items() if k not in parameters}
        found |= {f"{FROZEN}{name}.{k}": t for k, t in buffers.items() if torch.is_tensor(t)}
    return found


@torch.no_grad()
def restore_frozen(tensors: Mapping[str, Tensor], *programs: Program) -> None:
    """Write saved ones back. Raises ValueError if a program has none of that name or shape."""
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith(FROZEN)}
    here = frozen_buffers(*programs) if saved else {}
    for name, tensor in sorted(saved.items()):
        called = name.removeprefix(FROZEN)
        if name not in here:
            raise ValueError(
                f"the saved fit has the buffer {called!r} of a module that is not trained, and this pair has "
                "none of that name; give the pair that was fitted"
            )
        if here[name].shape != tensor.shape:
            raise ValueError(
                f"the saved fit has {called!r} of shape {tuple(tensor.shape)}, and this pair of "
                f"{tuple(here[name].shape)}; give the pair that was fitted"
            )
        here[name].copy_(tensor)
