"""Look for a better optimum elsewhere: refine a sample of observations from dispersed starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.refining.density import LocalDensity
from pyro_vae.guides.refining.placement import coordinates_of
from pyro_vae.guides.refining.steps import Normals, Refinement, refined_normals
from pyro_vae.posterior.evaluation.drawing import Pair

PRIOR_STARTS = 3
"""How many draws from the prior an observation starts from, beside the posterior of a neighbour."""

BETTER = 0.25
"""Nats. Less is the same optimum, approached from another side."""


class Elsewhere(NamedTuple):
    """What dispersed starts found, for some observations."""

    rows: Tensor
    """Which ones, counted within their block."""
    gain: Tensor
    """By how many nats the best ELBO from elsewhere exceeds that from the guide: (rows,), negative where the
    guide's was the best."""


def sample_of(observations: int, size: int, seed: int) -> NDArray[np.int64]:
    """Which observations are looked at, in order.

    >>> sample_of(5, 9, seed=0)
    array([0, 1, 2, 3, 4])
    """
    chosen = np.random.default_rng([seed, 11]).permutation(observations)[:size]
    return np.sort(chosen)


def refined_from_elsewhere(
    pair: Pair,
    args: tuple[Tensor, ...],
    density: LocalDensity,
    refinement: Refinement,
    rows: Tensor,
    *,
    steps: int,
    stop: float,
) -> tuple[Refinement, Elsewhere]:
    """Refine some observations also from draws of the prior and from a neighbour's posterior.

    For use within an evaluation of the pair with the model's parameters in place.

    Returns
    -------
    tuple
        The refinement, with the better optimum of the two where there is one; and what was found.
    """
    normals = refinement.normals
    if len(rows) == 0:
        return refinement, Elsewhere(rows, refinement.elbo[rows])
    draws = torch.stack([_prior_draw(pair, args, density) for _ in range(PRIOR_STARTS)]).to(normals.loc)
    factor = draws.std((0, 1), correction=0).expand_as(normals.loc)
    if normals.factor.dim() == 3:
        factor = torch.diag_embed(factor)
    starts = [Normals(draw, factor).rows(rows) for draw in draws]
    if len(normals.loc) > 1:
        starts.append(normals.rows((rows + 1) % len(normals.loc)))
    every = rows.repeat(len(starts))
    found = refined_normals(density, Normals.joined(starts), steps=steps, stop=stop, rows=every)
    best = found.elbo.nan_to_num(-torch.inf).unflatten(0, (len(starts), len(rows))).max(0)
    gain = (best.values - refinement.elbo[rows]).nan_to_num(0.0, posinf=torch.inf)
    better = torch.nonzero(gain >= BETTER)[:, 0]
    place = best.indices[better] * len(rows) + better
    return refinement.replaced(rows[better], found.rows(place)), Elsewhere(rows, gain)


def elsewhere_attrs(found: list[Elsewhere]) -> dict[str, float | int]:
    """How many observations were looked at, of which share a better optimum lies elsewhere, and by how many
    nats their ELBO gains by it, on average."""
    gain = torch.cat([part.gain for part in found])
    better = gain[(gain >= BETTER) & gain.isfinite()]
    return {
        "dispersed": len(gain),
        "elsewhere_share": len(better) / max(len(gain), 1),
        "elsewhere_nats": float(better.mean()) if len(better) else 0.0,
    }


def _prior_draw(pair: Pair, args: tuple[Tensor, ...], density: LocalDensity) -> Tensor:
    """Coordinates of a draw from the prior for each observation, (rows, D)."""
    with making_tensors_on(args[0].device):
        sites: Any = poutine.trace(poutine.uncondition(pair.model)).get_trace(*args).nodes
    parts = [coordinates_of(sites[name], sites[name]["value"], density.dim) for name in density.sizes]
    return torch.cat([part.to(parts[0]) for part in parts], -1)
