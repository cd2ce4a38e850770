"""Whether the minibatches of a fit mean what the fit takes them for; said before the first step."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch.utils.data import RandomSampler

from pyro_vae.batches.batches import Batch, Batches, LoaderBatches
from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.pairs.isolation import Program, owner, untouched_buffers
from pyro_vae.pairs.running import check_observed, rescaled_to, run_once, support_check
from pyro_vae.pairs.support import observed_parts


def check_minibatches(
    model: Program, guide: Program, batches: Batches, first: Batch, *, anew: bool = False
) -> str | None:
    """Refuse data that the model cannot have made, pairs that a fit on minibatches would lead to another
    posterior, and those that cannot take them.

    ``anew`` says that the first batch was drawn from the data and is not a part of them. Raises ValueError if
    a row of the data has no density; if data come in several batches and the guide has parameters for the
    rows of one of them, or for rows that a loader shuffles, or draws another subsample than the model; if no
    plate says that rows are independent; or if the pair does not take a last batch that is smaller.

    Returns
    -------
    str or None
        The plate that must be scaled to all data, since it has a batch's size and a latent lies beside it.
    """
    with torch.no_grad():
        trace = run_once(model, guide, first)
    if support_check(model) is None and not anew:
        _check_values(trace, batches, first)
    total, rows = batches.observations, len(first[0])
    if total <= rows:
        if _shuffles(batches):
            for autoguide in _autoguides(guide):
                _refuse_shuffled_rows(autoguide, trace, rows)
        return None
    _refuse_rows_without_plate(trace, rows, total)
    for autoguide in _autoguides(guide):
        _refuse_local_parameters(autoguide, trace, rows, total)
    _refuse_smaller_batch(model, guide, batches, first)
    return _plate_beside_globals(trace, rows)


def _check_values(trace: Trace, batches: Batches, first: Batch) -> None:
    """Of arrays now, of a loader's batches as they come."""
    if isinstance(batches, LoaderBatches):
        check_observed(trace, first, (), "a batch of data")
        batches.observed = tuple(observed_parts(trace, first))
    else:
        check_observed(trace, first, getattr(batches, "rows", ()))


def _refuse_rows_without_plate(trace: Trace, rows: int, total: int) -> None:
    """A series, say, of which batches would take rows here and there; or observations in no plate beside a
    latent of all data, which they cannot be scaled against."""
    observed = {name: site for name, site in _observed(trace) if torch.is_tensor(site["value"])}
    if not observed or any(_in_plate_of(site, rows) for site in observed.values()):
        return
    of_all = [
        n for n, site in _latents(trace) if not _in_plate_of(site, rows) and rows not in site["value"].shape
    ]
    if of_all or all(rows not in site["value"].shape for site in observed.values()):
        beside = f", beside latent {of_all[0]!r} of all data" if of_all else ""
        raise ValueError(
            f"batch_size is {rows}, and observed site {next(iter(observed))!r} is in no plate of that size"
            f"{beside}: nothing says that the {total} observations are independent of each other; give "
            f"batch_size={total}, which keeps them in their order, or write the site in "
            "`with pyro.plate('data', len(x)):`"
        )


def _in_plate_of(site: Any, rows: int) -> bool:
    return any(frame.vectorized and frame.size == rows for frame in site["cond_indep_stack"])


def _observed(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"]:
            yield name, site


def _latents(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        drawn = site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        if drawn and not (site["infer"] or {}).get("_deterministic"):
            yield name, site


def _plate_beside_globals(trace: Trace, rows: int) -> str | None:
    """The plate of a batch's size beside a latent that belongs to all data, if the model has both."""
    frames = [f for _, site in _observed(trace) for f in site["cond_indep_stack"] if f.vectorized]
    unscaled = [f.name for f in frames if f.full_size == rows]
    if rescaled_to(trace, rows) is not None or not unscaled:
        return None
    latents = [{frame.name for frame in site["cond_indep_stack"]} for _, site in _latents(trace)]
    return unscaled[0] if any(not plates & set(unscaled) for plates in latents) else None


def _autoguides(guide: Program) -> list[Any]:
    """Pyro's own, which have parameters for every row of a plate."""
    module = owner(guide)
    parts = [] if module is None else list(module.modules())
    return [p for p in parts if isinstance(p, AutoGuide) and not isinstance(p, LocalGuide | AutoGuideList)]


def _shuffles(batches: Batches) -> bool:
    return isinstance(batches, LoaderBatches) and isinstance(batches.loader.sampler, RandomSampler)


def _rows_of(autoguide: Any, trace: Trace, rows: int) -> Iterator[tuple[str, CondIndepStackFrame]]:
    """The latents with a value for each row of a batch that this guide has parameters for, and their
    plates."""
    prototype = getattr(autoguide, "prototype_trace", None)
    own = set(prototype.nodes) if prototype is not None else set()
    # A plate of groups may have as many members as a batch has rows; the observed sites are in that of rows.
    plates = {frame.name for _, site in _observed(trace) for frame in site["cond_indep_stack"]}
    for name, site in _latents(trace):
        for frame in site["cond_indep_stack"] if name in own else ():
            if frame.vectorized and frame.size == rows and frame.name in plates:
                yield name, frame


def _refuse_shuffled_rows(autoguide: Any, trace: Trace, rows: int) -> None:
    for name, _ in _rows_of(autoguide, trace, rows):
        raise ValueError(
            f"data is a DataLoader that shuffles, and {type(autoguide).__name__} has parameters of its own "
            f"for each row of latent {name!r}; give shuffle=False"
        )


def _refuse_local_parameters(autoguide: Any, trace: Trace, rows: int, total: int) -> None:
    kind = type(autoguide).__name__
    for name, frame in _rows_of(autoguide, trace, rows):
        if frame.full_size == frame.size:
            raise ValueError(
                f"{kind} has parameters of its own for each row of latent {name!r}, and a batch has "
                f"{rows} of the {total} rows; give batch_size={total}, or a guide that takes new data, "
                "AmortizedNormal(model, encoder)"
            )
        if autoguide.create_plates is None and frame.name not in trace.nodes:
            raise ValueError(
                f"the model is given its subsample of plate {frame.name!r}, and {kind} draws another "
                f"one; give the guide the same, {kind}(model, create_plates=lambda x, rows: "
                f"pyro.plate({frame.name!r}, {frame.full_size}, subsample=rows))"
            )


def _refuse_smaller_batch(model: Program, guide: Program, batches: Batches, first: Batch) -> None:
    size = len(first[0])
    if isinstance(batches, LoaderBatches) and (batches.loader.drop_last or batches.loader.batch_size is None):
        return
    rest = batches.observations % size
    if not rest:
        return
    last = tuple(part[:rest] for part in first)
    try:
        with (
            torch.no_grad(),
            forked_streams(),
            untouched_buffers(model, guide),
            making_tensors_on(first[0].device),
        ):
            get_importance_trace("flat", float("inf"), model, guide, last, {})
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0].rstrip(".")
        even = math.ceil(batches.observations / math.ceil(batches.observations / size))
        even += batches.observations % even == 1
        raise ValueError(
            f"batch_size is {size}, so that the last of {batches.observations} observations come as a batch "
            f"of {rest}, which the pair does not take ({reason}); give batch_size={even}, or a "
            "DataLoader with drop_last=True"
        ) from error
