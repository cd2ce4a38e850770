"""Discrete latents that a model enumerates and its guide leaves out: their densities are summed over them."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

Program = Callable[..., Any]


def left_to_enumeration(model_trace: Trace, guide_trace: Trace) -> frozenset[str]:
    """The latents that the model marks to be enumerated and the guide does not draw."""
    return frozenset(
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and name not in guide_trace.nodes
        and (site["infer"] or {}).get("enumerate")
    )


def enumerated(model: Program, nesting: int) -> Program:
    """The model with all values of its enumerated latents side by side, to the left of ``nesting`` plates."""
    program: Program = EnumMessenger(first_available_dim=-1 - nesting)(model)
    return program


def drawn_given_the_rest(model: Program, nesting: int) -> Program:
    """The model with its enumerated latents drawn from their posterior given everything else in it."""
    program: Program = infer_discrete(
        model, first_available_dim=-1 - nesting, strict_enumeration_warning=False
    )
    return program


def summed_out(trace: Trace, names: Collection[str]) -> list[Tensor]:
    """Terms whose total is log Σ Π p over all values of the enumerated latents, of these sites alone.

    Masks count, subsampling and annealing scales do not. Each has the plates to the right as they are, and
    no dimensions of enumeration.

    Parameters
    ----------
    trace
        Of an :func:`enumerated` model.
    names
        Which densities to multiply; latents that are not among them are the same as if they were.
    """
    trace.symbolize_dims()
    plates = {trace.plate_to_symbol[f.name]: f.dim for f in _frames(trace)}
    tree: OrderedDict[frozenset[str], list[Any]] = OrderedDict()
    sums: set[str] = set()
    for name in names:
        site: Any = trace.nodes[name]
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        term: Any = packed.pack(log_prob, site["infer"]["_dim_to_symbol"])
        own = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        sums |= set(term._pyro_dims) - plates.keys()
        tree.setdefault(own & set(term._pyro_dims), []).append(term)
    contracted = contract_tensor_tree(tree, sums, cache={})
    return [_unpacked(term, plates) for terms in contracted.values() for term in terms]


def by_chain_rule(
    trace: Trace, summed: Collection[str], names: Sequence[str], total: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The densities of these sites, each given those before it, with enumerated latents summed out.

    ``total`` sums a term over whatever nobody asks for.
    """
    found, before = {}, None
    for count, name in enumerate([None, *names]):
        first, *others = [total(term) for term in summed_out(trace, [*summed, *names[:count]])]
        now = sum(others, first)
        if name is not None and before is not None:
            found[name] = now - before
        before = now
    return found


def _unpacked(term: Any, plates: dict[str, int]) -> Tensor:
    """A term with its plates at their dims."""
    dims = sorted((plates[symbol], i) for i, symbol in enumerate(term._pyro_dims))
    result: Tensor = term.permute([i for _, i in dims])
    for place in range(1, 1 - min((dim for dim, _ in dims), default=0)):
        if -place not in {dim for dim, _ in dims}:
            result = result.unsqueeze(result.dim() + 1 - place)
    return result


def _frames(trace: Trace) -> list[Any]:
    return [
        frame
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
