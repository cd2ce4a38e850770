"""The first run of a pair on its data: what does not fit together is said here, and not by a later step."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae.arguments import without_trace
from pyro_vae.batches.batches import Batch
from pyro_vae.batches.files import row_chunks
from pyro_vae.batches.rows import check_rows, plain_parts
from pyro_vae.batches.streams import is_stream
from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.guides.latents import LatentError
from pyro_vae.pairs.isolation import Program, evaluating, modules_of, owner, untouched_buffers
from pyro_vae.pairs.modes import quiet_about_hooks
from pyro_vae.pairs.support import observed_parts, refuse_impossible, refuse_other_shape
from pyro_vae.pairs.telling import ENUMERATE, NO_DENSITY, told


def support_check(model: Program) -> Callable[[Tensor, str], None] | None:
    """How a model that knows the support of its data looks at them (``model.likelihood.check``)."""
    check = getattr(getattr(owner(model), "likelihood", None), "check", None)
    return check if callable(check) else None


def check_support(model: Program, data: Any, name: str) -> None:
    """Let a model that knows the support of its data look at them once; at the batches of a loader it looks
    as they come."""
    check = support_check(model)
    if check is None or data is None or is_stream(data):
        return
    check_rows(check, plain_parts(data, name)[0][0], name)


def traced_pair(
    model: Program, guide: Program, batch: tuple[Tensor, ...], name: str = "data"
) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide on one batch, with Pyro's own checks on. Raises ValueError or
    TypeError if they do not run on the batch, which the message calls ``name``, or draw different latents.
    Errors of other kinds are the program's own and pass."""
    try:
        with (
            pyro.validation_enabled(True),
            making_tensors_on(batch[0].device),
            warnings.catch_warnings(),
        ):
            # told below, as errors: a latent without a partner makes the objective a wrong one
            warnings.filterwarnings("ignore", message="Found (vars in model|non-auxiliary vars in guide)")
            warnings.filterwarnings("ignore", message="Encountered ")  # of infinite densities: told by row
            model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, batch, {})
    except LatentError as error:
        raise LatentError(without_trace(error)) from error
    except (ValueError, TypeError, RuntimeError) as error:
        if type(error) not in (ValueError, TypeError, RuntimeError):
            raise
        if str(error).startswith(NO_DENSITY):
            trace = _model_trace(model, guide, batch)
            refuse_other_shape(trace, name)
            refuse_impossible(trace, name)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(told(error, batch, name, model, guide)) from error
    _check_latents(model_trace, guide_trace)
    return model_trace, guide_trace


def _model_trace(model: Program, guide: Program, batch: tuple[Tensor, ...]) -> Trace:
    """The model's trace on a draw of the guide, without a look at densities."""
    with torch.no_grad(), pyro.validation_enabled(True), making_tensors_on(batch[0].device):
        drawn = poutine.trace(guide).get_trace(*batch)
        return poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    nodes = model_trace.nodes
    latents = {name for name in nodes if _is_drawn(nodes[name])}
    drawn = {name for name, site in guide_trace.nodes.items() if _is_drawn(site)}
    missing = sorted(name for name in latents - drawn if not _is_enumerated(nodes[name]))
    named = {name for name in drawn if not (guide_trace.nodes[name]["infer"] or {}).get("is_auxiliary")}
    unknown = sorted(named - latents)
    if missing:
        instead = f"rename its {unknown[0]!r}" if unknown else "add it to the guide"
        if getattr(nodes[missing[0]]["fn"], "has_enumerate_support", False):
            raise ValueError(
                f"the guide has no site {missing[0]!r}, a discrete latent that the model draws; {instead}, "
                f"or sum over it: {ENUMERATE}"
            )
        raise ValueError(
            f"the guide has no site {missing[0]!r}, which the model draws; {instead}, "
            "marginalize it in the model, or let AmortizedNormal(model, encoder) find the latents"
        )
    if unknown:
        raise ValueError(
            f"the guide draws {unknown[0]!r}, which is no latent of the model ({', '.join(sorted(latents))})"
            "; rename it, or mark it infer={'is_auxiliary': True}"
        )
    if not any(site["type"] == "sample" and site["is_observed"] for site in model_trace.nodes.values()):
        raise ValueError("the model observes nothing, so there is nothing to fit to; give a site obs=")


def _is_enumerated(site: Any) -> bool:
    return bool(site["infer"].get("enumerate"))


def _check_enumerated(model_trace: Trace, guide_trace: Trace) -> None:
    for name, site in model_trace.nodes.items():
        if name not in guide_trace.nodes and _is_drawn(site) and _is_enumerated(site):
            raise ValueError(
                f"the model enumerates {name!r}, which the guide does not draw; give objective="
                "pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), which sums over it"
            )


def _is_drawn(site: Any) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    )


def run_pair(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide on one draw, with log densities."""
    with making_tensors_on(next((arg.device for arg in args if torch.is_tensor(arg)), None)):
        model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, args, {})
    _check_enumerated(model_trace, guide_trace)
    return model_trace, guide_trace


def rescaled_to(model_trace: Trace, rows: int) -> int | None:
    """How many observations the total of a batch of this many rows is about, where a plate rescales to the
    whole data; None where it is about the rows themselves, whatever the sizes of other plates."""
    sizes = [
        int(frame.full_size or 0)
        for site in model_trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.size == rows
    ]
    sizes = [size for size in sizes if size > rows]
    return max(sizes, default=None)


def set_up(model: Program, guide: Program, batch: Batch) -> tuple[Callable[[Batch], int], float]:
    """Run the pair once; how many observations the totals of a batch are about, and a step's floating-point
    operations."""
    with counting_flops() as counter:
        full = rescaled_to(run_once(model, guide, batch), len(batch[0]))
    forward_and_backward = 3.0 * counter.get_total_flops()
    return (lambda b: len(b[0]) if full is None else full), forward_and_backward


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of what runs inside, which is the forward pass of some programs."""
    # With gradients, for without torch's counter fails on guides that return parameters, such as AutoDelta.
    with torch.enable_grad(), quiet_about_hooks(), FlopCounterMode(display=False) as counter:
        yield counter


def run_once(model: Program, guide: Program, batch: Batch, name: str = "data") -> Trace:
    """The model's trace on a batch, with Pyro's own checks on and the stream left alone. From then on, lazy
    parameters exist."""
    with forked_streams(), evaluating(model, guide):
        model_trace, _ = traced_pair(model, guide, batch, name)
    return model_trace


def check_observed(
    trace: Trace, first: Batch, data: Sequence[Any], name: str = "data", *, drawn: bool = True
) -> None:
    """Refuse data, a row of which the model's distributions cannot have made. Raises ValueError naming value,
    row, site and remedy.

    Parameters
    ----------
    trace
        Of the model on the batch ``first``.
    first
        Its arguments.
    data
        All rows of each argument: tensors, or arrays in files.
    name
        What a sentence calls them.
    drawn
        Whether a guide has drawn the latents; those of the prior may have no part in these data.
    """
    refuse_impossible(trace, name, fixed=not drawn)
    for part in observed_parts(trace, first) if data else ():
        whole = data[part.part]
        for chunk in row_chunks(whole):
            part.refuse_impossible(whole[chunk], name, start=chunk.start)


def float_dtype(model: Program, guide: Program) -> torch.dtype:
    """The dtype of a pair's parameters; data are cast to it."""
    for module in modules_of(model, guide):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype()


def has_global_sites(model: Program, guide: Program, batch: tuple[Any, ...]) -> bool:
    """Whether a sample site of either program is outside of the plate over observations (dim −1)."""
    with torch.no_grad(), forked_streams(), untouched_buffers(model, guide):
        traces = run_pair(model, guide, batch)
    return any(
        site["type"] == "sample" and not in_observation_plate(site)
        for trace in traces
        for site in trace.nodes.values()
    )


def in_observation_plate(site: Any) -> bool:
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])
