"""Make a user's pair ready for evaluation: copies, precision, and the way in which it takes many draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_vae.arguments import without_trace
from pyro_vae.arrays import subsets
from pyro_vae.guides.latents import LatentError
from pyro_vae.pairs.enumeration import left_to_enumeration
from pyro_vae.pairs.numbers import is_floating
from pyro_vae.pairs.running import check_observed, counting_flops
from pyro_vae.pairs.support import refuse_other_shape
from pyro_vae.pairs.telling import told_better
from pyro_vae.posterior.evaluation.block import Block
from pyro_vae.posterior.evaluation.copies import copied_pairs
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.selection import as_parts, select
from pyro_vae.posterior.evaluation.sites import (
    DataPlate,
    PairError,
    SharedLatentError,
    in_data_plate,
    sample_sites,
    shared_latent,
)
from pyro_vae.posterior.joint import joint_pair

PREPARED_ON = 2
"""Observations on which a pair is tried. Of more, a guide with parameters for each of its own is told by that
it does not run on these."""


def prepare(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    dtypes: Sequence[torch.dtype | None] = (torch.float64, None),
    predictive: bool = False,
) -> Pair:
    """Make a pair ready: copies in evaluation mode and float64, and the fastest right way to run them.

    Modules are copied, put into evaluation mode and, if both programs are modules, converted to float64.
    Plain functions run as they are. Three ways of drawing many times are tried on two observations:

    - ``broadcast``: an outer plate of draws, so the encoder runs once per observation and networks see
      (draws, rows, ...);
    - ``rows``: each observation repeated, for networks that do not broadcast (convolutions); it also checks
      the first way, because a network may broadcast wrongly without an error;
    - ``broadcast`` with all observations at once, for guides with parameters of their own for each
      observation (Pyro's autoguides).

    ``predictive`` asks for a pair that also draws from the prior, whose constants may be of another dtype
    than the data. Integers are tried as they are, and then as floating point. ``dtypes`` are tried in this
    order with two modules; None is their own. Raises PairError if a latent is missing in one of the two
    programs or lies outside the observation plate; TypeError if the data are neither tensors nor arrays;
    ValueError if the data are empty or not finite, or the pair does not run on them; the pair's own error is
    the cause."""
    parts = as_parts(data)
    data = parts if len(parts) > 1 or isinstance(data, tuple) else parts[0]
    errors: list[Exception] = []
    whole = [i for i, part in enumerate(parts) if not is_floating(part)]
    for floats in subsets(whole):
        pair = _prepared(model, guide, data, dtypes, floats, errors, predictive)
        if pair is not None:
            _refuse_impossible(pair)
            return replace(pair, flops=_flops(pair))
        if any(isinstance(error, PairError) for error in errors):
            break
    told = [error for error in errors if isinstance(error, PairError)]
    if told:  # of the most tolerant way
        raise next((error for error in told if isinstance(error, SharedLatentError)), told[-1])
    known = "" if isinstance(errors[0], LatentError) else told_better(errors[0], model, guide)
    if known or isinstance(errors[0], LatentError):
        raise ValueError(known or without_trace(errors[0])) from errors[0]
    _refuse_other_shape(model, guide, data)
    reason = str(errors[0]).strip().split("\n")[0].rstrip(".")
    raise ValueError(
        "model and guide do not run on the first two observations of data: "
        f"{type(errors[0]).__name__}: {reason}; give data of the shape and dtype that both take, and each "
        "site one shape in both"
    ) from errors[0]


def _refuse_other_shape(model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> None:
    """Raise a ValueError if what the model observes does not suit its plates."""
    single = replace(next(copied_pairs(model, guide, data, (None,), ())), layout="rows")
    try:
        with single.evaluation(0), pyro.validation_enabled(True):
            trace = single.traces(single.tensors, 1)[1]
    except Exception:  # told by what they have failed with
        return
    refuse_other_shape(trace, "data")


def _refuse_impossible(pair: Pair) -> None:
    """Raise a ValueError if the model cannot have made a row of the data: its evidence would be nothing."""
    first = tuple(arg[: None if pair.whole else 2] for arg in pair.args)
    with pair.evaluation(0), pyro.validation_enabled(True):
        try:
            trace = replace(pair, layout="rows").run_model(first, 1)
        except Exception:  # what runs only with the guide's draws says nothing here
            return
    check_observed(trace, first, pair.args, drawn=False)


def prepare_joint(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    dtypes: Sequence[torch.dtype | None] = (torch.float64, None),
    predictive: bool = False,
) -> Pair:
    """Make a pair ready whose latents are shared by the observations: it runs on all of them at once. Raises
    PairError or TypeError or ValueError as :func:`prepare`."""
    parts = as_parts(data)
    data = parts if len(parts) > 1 or isinstance(data, tuple) else parts[0]
    whole = [i for i, part in enumerate(parts) if not is_floating(part)]
    candidates = (
        candidate
        for floats in subsets(whole)
        for candidate in copied_pairs(model, guide, data, dtypes, floats)
    )
    pair = joint_pair(map(_with_structure, candidates), predictive=predictive)
    pair = replace(pair, flops=_flops(pair))
    _refuse_impossible(replace(pair, whole=True))
    return pair


def prepare_chosen(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    observations: Sequence[int] | None,
    *,
    predictive: bool = False,
) -> tuple[NDArray[np.int64], Pair, bool]:
    """Make a pair ready for some observations: which they are, the pair, and whether it has latents that all
    observations share; then it is on all of the data."""
    index, subset = select(data, observations)
    try:
        return index, prepare(model, guide, subset, predictive=predictive), False
    except SharedLatentError as error:
        if observations is not None:
            raise ValueError(
                "observations names some of the data, but all of them share latents; leave it out"
            ) from error
    return index, prepare_joint(model, guide, data, predictive=predictive), True


def _with_structure(pair: Pair) -> Pair:
    """The pair with what is to be known of its programs: which latents are left to enumeration, and the plate
    of the observations."""
    single = replace(pair, layout="rows")
    few = [_frames(single, rows) for rows in (1, 2)]
    counts, found = ((1, 2), few) if None not in few else ((pair.observations,), [_frames(single, None)])
    known = [each for each in found if each is not None]
    if len(known) < len(counts):
        return pair
    last, summed = known[-1]
    ours = [
        {name for name, frame in frames.items() if frame.size == count}
        for count, (frames, _) in zip(counts, known, strict=True)
    ]
    names = set.intersection(*ours)
    dim = max((last[name].dim for name in names), default=-1)
    plate = DataPlate(dim, frozenset(name for name in names if last[name].dim == dim))
    nesting = max((-frame.dim for frame in last.values()), default=1)
    return replace(pair, plate=plate, nesting=nesting, summed=summed)


def _frames(pair: Pair, rows: int | None) -> tuple[dict[str, Any], frozenset[str]] | None:
    """The plates of the model on some observations, and what it leaves to enumeration; None if it does not
    run on them."""
    try:
        with pair.evaluation(0):
            guide_trace, trace = pair.traces(tuple(arg[slice(0, rows)] for arg in pair.args), 1)
    except Exception:  # whatever programs do with other data than they are made for
        return None
    found = [frame for site in sample_sites(trace).values() for frame in site["cond_indep_stack"]]
    frames = {frame.name: frame for frame in found if frame.vectorized}
    return frames, left_to_enumeration(trace, guide_trace)


def _prepared(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    dtypes: Sequence[torch.dtype | None],
    floats: Collection[int],
    errors: list[Exception],
    predictive: bool,
) -> Pair | None:
    """The pair with the integers of some parts as floating point, if it runs on them."""
    for candidate in map(_with_structure, copied_pairs(model, guide, data, dtypes, floats)):
        two = slice(0, min(PREPARED_ON, candidate.observations))
        rows = _attempt(replace(candidate, layout="rows"), two, errors, predictive)
        broadcast = _attempt(replace(candidate, layout="broadcast"), two, errors, predictive)
        if broadcast is not None and (rows is None or _agree(broadcast[1], rows[1])):
            # two observations may be all there are, and the guide's parameters theirs alone
            return replace(broadcast[0], whole=rows is None and candidate.observations <= PREPARED_ON)
        if rows is not None:
            return rows[0]
        together = replace(candidate, layout="broadcast", whole=True)
        whole = _attempt(together, slice(0, candidate.observations), errors, predictive)
        if whole is not None:
            return whole[0]
        _note_shared(candidate, errors)
    return None


def _note_shared(candidate: Pair, errors: list[Exception]) -> None:
    """Add an error of its own kind if the pair runs on all of its data, with latents outside of their plate.
    Two observations or an outer plate of draws may have failed on other grounds."""
    try:
        pair = replace(candidate, layout="rows")
        with pair.evaluation(0):
            sites = [site for trace in pair.traces(pair.tensors, 1) for site in sample_sites(trace).values()]
    except Exception as error:
        errors.append(error)
        return
    outside = [site["name"] for site in sites if not in_data_plate(site, pair.plate)]
    if outside:
        errors.append(SharedLatentError(shared_latent(outside[0])))


def _attempt(
    pair: Pair, observations: slice, errors: list[Exception], predictive: bool
) -> tuple[Pair, Block] | None:
    """Try a way of running on a few observations. Users' programs can fail with anything."""
    try:
        pair = replace(pair, nesting=_nesting(pair, observations))
        return pair, pair.block(observations, slice(0, 3), seed=0, predictive=predictive)
    except Exception as error:
        errors.append(error)
        return None


def _flops(pair: Pair) -> float:
    """Of one row; infinite, and so all threads, where torch's counter cannot run the programs. Where there is
    but one thread nobody asks, and they are not counted."""
    if torch.get_num_threads() == 1:
        return 0.0
    rows, draws = (pair.observations, 1) if pair.whole else (min(PREPARED_ON, pair.observations), 3)
    try:
        with pair.evaluation(0), counting_flops() as counter:
            pair.traces(tuple(arg[:rows] for arg in pair.args), draws)
    except Exception:
        return math.inf
    return counter.get_total_flops() / (rows * draws)


def _nesting(pair: Pair, observations: slice) -> int:
    """How many plates there are inside each other: the draws go outside of all of them."""
    single = replace(pair, layout="rows")
    with single.evaluation(0):
        traces = single.traces(tuple(arg[observations] for arg in pair.args), 1)
    frames = [
        f for trace in traces for site in sample_sites(trace).values() for f in site["cond_indep_stack"]
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=1)


def _agree(a: Block, b: Block) -> bool:
    return torch.allclose(a.log_weight, b.log_weight, rtol=1e-4, atol=1e-4, equal_nan=True)
