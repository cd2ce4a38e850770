"""Copy a pair for evaluation: in evaluation mode and the dtype asked for, with the parameters it needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import nn

from pyro_vae.arguments import kind
from pyro_vae.batches.rows import as_rows
from pyro_vae.copies import deep_copy
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.pairs.isolation import owner
from pyro_vae.posterior.evaluation.drawing import Pair, StoreState
from pyro_vae.posterior.evaluation.selection import device_of


def copied_pairs(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    dtypes: Sequence[torch.dtype | None],
    floats: Collection[int],
) -> Iterator[Pair]:
    """The pair in each dtype if both programs are modules, else in the one that it has."""
    store = pyro.get_param_store().get_state()
    modules = [module for module in (owner(model), owner(guide)) if module is not None]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    own = floating[0] if floating else torch.get_default_dtype()
    device = tensors[0].device if tensors else device_of(data)
    for dtype in dtypes if len(modules) == 2 else (None,):
        shared: dict[int, Any] = {}
        programs = [_evaluation_copy(program, dtype, shared) for program in (model, guide)]
        states = [_state(store, owner(program), dtype) for program in programs]
        args = as_rows(data, device=device, dtype=dtype or own, floats=floats)
        yield Pair(programs[0], programs[1], args, states[0], states[1], dtype)


def _evaluation_copy(
    program: Callable[..., Any], dtype: torch.dtype | None, shared: dict[int, Any]
) -> Callable[..., Any]:
    """A module's copy in evaluation mode; ``shared`` keeps what model and guide have in common one thing."""
    module = owner(program)
    if module is None:
        return program
    autoguides = _autoguides(module)
    models = [(part._model, part.master) for part in autoguides]
    twin = deep_copy(program, shared)
    twin_module: Any = owner(twin)
    twin_module.to(dtype=dtype).eval()
    # copying an autoguide takes its model away, from the original too
    for part, twin_part, saved in zip(autoguides, _autoguides(twin_module), models, strict=True):
        part._model, part.master = saved
        if part._model is not None:
            twin_part._model = tuple(_evaluation_copy(model, dtype, shared) for model in part._model)
        elif isinstance(part, LocalGuide):
            raise ValueError(
                f"the guide, {kind(part)}, was unpickled, which leaves its model behind; make it anew for the"
                " model, and give it the other's state_dict"
            )
    return twin


def _autoguides(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, AutoGuide)]


def _state(store: StoreState, module: nn.Module | None, dtype: torch.dtype | None) -> StoreState:
    """The store entries that a program needs: a function all, a module those that it does not hold itself.

    Entries under a module's own names, or put there by ``pyro.module`` (their names have ``$$$``), may
    belong to another pair.
    """
    if module is None:
        return {"params": dict(store["params"]), "constraints": dict(store["constraints"])}
    own = {name.removesuffix("_unconstrained") for name, _ in module.named_parameters()}
    params = {name: value for name, value in store["params"].items() if name not in own and "$$$" not in name}
    cast = {
        name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in params.items()
    }
    return {"params": cast, "constraints": {name: store["constraints"][name] for name in params}}
