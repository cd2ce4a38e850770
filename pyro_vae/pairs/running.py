"""The first run of a pair on its data: what does not fit together is said here, and not by a later step."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_vae.batches.batches import Batch
from pyro_vae.batches.rows import check_rows, plain_parts
from pyro_vae.batches.streams import is_stream
from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.pairs.isolation import Program, evaluating, modules_of, owner, untouched_buffers
from pyro_vae.pairs.modes import quiet_about_hooks


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
    """The traces of the model and of the guide on one batch, with Pyro's own checks on.

    Raises
    ------
    ValueError, TypeError
        If they do not run on the batch, which the message calls ``name``, or draw different latents. Errors
        of other kinds are the program's own and pass.
    """
    try:
        with (
            pyro.validation_enabled(True),
            making_tensors_on(batch[0].device),
            warnings.catch_warnings(),
        ):
            # told below, as errors: a latent without a partner makes the objective a wrong one
            warnings.filterwarnings("ignore", message="Found (vars in model|non-auxiliary vars in guide)")
            model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, batch, {})
    except (ValueError, TypeError, RuntimeError) as error:
        if type(error) not in (ValueError, TypeError, RuntimeError):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_told(error, batch, name)) from error
    _check_latents(model_trace, guide_trace)
    return model_trace, guide_trace


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    nodes = model_trace.nodes
    latents = {name for name in nodes if _is_drawn(nodes[name])}
    drawn = {name for name, site in guide_trace.nodes.items() if _is_drawn(site)}
    missing = sorted(name for name in latents - drawn if not _is_enumerated(nodes[name]))
    named = {name for name in drawn if not (guide_trace.nodes[name]["infer"] or {}).get("is_auxiliary")}
    unknown = sorted(named - latents)
    if missing:
        instead = f"rename its {unknown[0]!r}" if unknown else "add it to the guide"
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


NO_DENSITY = "Error while computing log_prob at site "
"""How Pyro begins where a value is not in the support of its distribution."""


def _told_of_support(reason: str, cause: BaseException) -> str:
    """What was observed cannot come from its distribution: the data are to blame, or the distribution."""
    site = reason.removeprefix(NO_DENSITY).split("\n")[0].strip(": ")
    found = re.search(r"support \((.*?)\) of the distribution (\w+)", str(cause))
    if found is None:
        return f"site {site} has no density: {str(cause).splitlines()[0]}; change its value or distribution"
    support, distribution = found.groups()
    inner = re.search(r"IndependentConstraint\((\w+)", support)
    needs = SUPPORTS.get(inner.group(1) if inner else support.split("(")[0], support)
    if distribution == "Independent":
        base = re.search(r"Independent\((\w+)", str(cause))
        distribution = base.group(1) if base else distribution
    return (
        f"site {site} observes values outside of the support of its {distribution}, which needs {needs}; "
        "give data that lie there, or another distribution"
    )


SUPPORTS = {
    "Boolean": "0 or 1",
    "Interval": "values strictly inside of its bounds",
    "IntegerInterval": "whole numbers within its bounds",
    "GreaterThan": "values above its lower bound",
    "GreaterThanEq": "values not below its lower bound",
    "IntegerGreaterThan": "whole numbers of at least its lower bound",
}
"""In words, what Pyro's constraints ask of a value."""


def _told(error: Exception, batch: tuple[Tensor, ...], name: str) -> str:
    """What the program said, without the table of sites that Pyro adds, and what it was given."""
    while type(error.__cause__) is type(error) and str(error).startswith(str(error.__cause__)):
        error = error.__cause__
    reason = str(error).strip().split("\n")[0].rstrip(".")
    if reason.startswith(NO_DENSITY) and error.__cause__ is not None:
        return _told_of_support(reason, error.__cause__)
    if reason.startswith("Multiple sample sites named"):
        return f"{reason.replace('Multiple', 'there are several')}; give each a name of its own"
    if reason.startswith("Model and guide"):
        return f"m{reason[1:]}; give the site one shape in both"
    if "same device" in reason:
        return (
            f"model and guide mix devices on {name}, which lies on {batch[0].device}: {reason}; hold tensors "
            "as parameters or buffers, make them on the device of the data, or give device='cpu'"
        )
    arguments = f"{len(batch)} argument{'s' * (len(batch) != 1)}"
    shapes = ", ".join(f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in batch)
    whole = not any(part.is_floating_point() for part in batch)
    return (
        f"model and guide do not run on {name}, called with {arguments} of shape {shapes}: {reason}; give "
        f"{name} of the shape and dtype that both take{', such as floats by .float()' * whole}"
    )


def run_pair(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide on one draw, with log densities."""
    with making_tensors_on(next((arg.device for arg in args if torch.is_tensor(arg)), None)):
        model_trace, guide_trace = get_importance_trace("flat", float("inf"), model, guide, args, {})
    _check_enumerated(model_trace, guide_trace)
    return model_trace, guide_trace


def rescaled_to(model_trace: Trace, rows: int) -> int | None:
    """How many observations the total of a batch of so many rows is about, where a plate rescales to the
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
    # With gradients, for without torch's counter fails on guides that return parameters, such as AutoDelta.
    with torch.enable_grad(), quiet_about_hooks(), FlopCounterMode(display=False) as counter:
        full = rescaled_to(run_once(model, guide, batch), len(batch[0]))
    forward_and_backward = 3.0 * counter.get_total_flops()
    return (lambda b: len(b[0]) if full is None else full), forward_and_backward


def run_once(model: Program, guide: Program, batch: Batch, name: str = "data") -> Trace:
    """The model's trace on a batch, with Pyro's own checks on and the stream left alone. From then on, lazy
    parameters exist."""
    with forked_streams(), evaluating(model, guide):
        model_trace, _ = traced_pair(model, guide, batch, name)
    return model_trace


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
