"""Draw around refined Normals until the evidence can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_vae.guides.refining.density import LocalDensity
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.pareto import effective_draws, evidence_error, khat_threshold, pareto_khat
from pyro_vae.posterior.refined.rows import RefinedRows, evaluating_model
from pyro_vae.posterior.repair.proposals import Proposal, matched

Array = NDArray[np.float64]

ROUNDS = (1, 2, 4, 4)
"""Draws of each round, in those that were asked for; a round is for those that the one before left."""

LARGEST_KHAT = 0.5
"""Up to which the variance of the weights is finite: with less another round is of no use."""

ENOUGH, ENOUGH_SHARE = 400.0, 0.1
"""Effective draws, and their share of a round's, with which an observation needs no other round."""

GROUP = 500_000
"""Draws that are held at once."""

ROUND_KEY = 7
"""Keeps these streams apart from those of other draws with the same seed."""


@dataclass(frozen=True)
class Weighted:
    """Draws from proposals and what they weigh."""

    free: Tensor
    """Coordinates, (draws, n, D)."""
    log_prior: Tensor
    log_likelihood: Tensor
    """log p(z) + log |dz/du| and log p(x|z), nats, (draws, n), float64."""
    log_proposal: Tensor
    """Of the draws, (draws, n)."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, u) − log of the proposal, (draws, n)."""
        return self.log_prior + self.log_likelihood - self.log_proposal


def weigh(
    density: LocalDensity,
    proposal: Proposal,
    draws: int,
    generators: Sequence[np.random.Generator],
    rows: Tensor,
    like: Tensor,
) -> Weighted:
    """Draw from the proposals of some observations ``rows`` of a density, and weigh the draws.

    For use within :func:`~pyro_vae.posterior.refined.rows.evaluating_model`. Draws go into the model
    in the dtype and on the device of the tensor ``like``.
    """
    seen = proposal.draw(draws, generators).to(like)
    prior, likelihood = (part.double().cpu() for part in density.parts(seen, rows.to(like.device)))
    free = seen.double().cpu()  # rounded as the model has seen them
    return Weighted(free, prior, likelihood, proposal.log_density(free))


def evidence_columns(pair: Pair, part: RefinedRows, draws: int, seed: int) -> dict[str, Array]:
    """What importance draws around refined Normals say of each observation; the columns of ``diagnose``.

    The proposal is a Student-t with max(5, D) degrees of freedom around the Normal, a tenth of it twice as
    wide. Observations with k̂ above 0.5 or too few effective draws get rounds of more draws from proposals
    with the moments of the weighted ones.
    """
    n = len(part.refinement.elbo)
    groups = np.array_split(np.arange(n), -(-n * draws // GROUP))
    columns = [_group(pair, part, draws, seed, rows) for rows in groups]
    return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}


def _group(pair: Pair, part: RefinedRows, draws: int, seed: int, rows: NDArray[np.int64]) -> dict[str, Array]:
    place, like = torch.from_numpy(rows), part.refinement.normals.loc
    normals = part.refinement.normals.rows(place.to(like.device))
    proposal = Proposal(normals.loc.double().cpu(), normals.full().factor.double().cpu())
    numbers = {
        name: np.full(len(rows), np.nan) for name in ("log_evidence", "log_evidence_se", "khat", "ess")
    }
    rounds, own = np.zeros(len(rows)), {}
    left = np.arange(len(rows))
    for number, times in enumerate(ROUNDS):
        generators = [
            np.random.default_rng([seed, ROUND_KEY, number, part.observations.start + i])
            for i in rows[left].tolist()
        ]
        now = proposal.part(torch.from_numpy(left))
        with evaluating_model(pair, rows=min(part.density.chunk, times * draws * len(left))):
            weighted = weigh(part.density, now, times * draws, generators, place[left], like)
        if number == 0:
            own = _of_the_normals(now, weighted)
        log_weight = weighted.log_weight.numpy().T
        khat, ess = pareto_khat(log_weight), effective_draws(log_weight)
        rounds[left] = number + 1
        numbers["khat"][left], numbers["ess"][left] = khat, ess
        with np.errstate(all="ignore"):  # weights that are all zero, or no numbers
            numbers["log_evidence"][left] = logsumexp(log_weight, axis=1) - np.log(times * draws)
        numbers["log_evidence_se"][left] = evidence_error(log_weight, khat)
        limit = min(LARGEST_KHAT, khat_threshold(times * draws))
        few = np.flatnonzero((khat > limit) | (ess < min(ENOUGH, ENOUGH_SHARE * times * draws)))
        if len(few) == 0:
            break
        which = torch.from_numpy(few)
        better = matched(weighted.free[:, which], weighted.log_weight[:, which], now.part(which))
        left = left[few]
        proposal = proposal.replaced(torch.from_numpy(left), better)
    refinement = part.refinement
    return {
        **own,
        **numbers,
        "rounds": rounds,
        "elbo_guide": refinement.elbo_before.double().cpu().numpy()[rows],
        "converged": refinement.converged.cpu().numpy()[rows],
    }


def _of_the_normals(proposal: Proposal, weighted: Weighted) -> dict[str, Array]:
    """ELBO, KL and reconstruction of the Normals that the first proposals are wider than."""
    size = proposal.loc.shape[-1]
    log_normal = (
        -0.5 * proposal.to_white(weighted.free).square().sum(-1)
        - proposal.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - size / 2 * math.log(2 * math.pi)
    )
    weight = (log_normal - weighted.log_proposal).softmax(0)

    def mean(values: Tensor) -> Array:
        averaged: Array = torch.where(weight > 0, weight * values, 0.0).sum(0).numpy()
        return averaged

    kl, reconstruction = mean(log_normal - weighted.log_prior), mean(weighted.log_likelihood)
    return {"elbo": reconstruction - kl, "kl": kl, "reconstruction": reconstruction}
