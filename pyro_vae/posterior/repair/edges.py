"""Is there more of a posterior beyond the candidates that were weighed?

Weights tell of the posterior where candidates are. Where they are not, as at the tips of a banana, nothing is
missing from the weights, k̂ is good, and the draws are too narrow. The largest weights are where the proposal
is thinnest, so that is where what it lacks begins: chains of Hamiltonian Monte Carlo, which leave the
posterior as it is, start there. Where the proposal covers it they turn back; else they come to places that
weigh more than any candidate does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.posterior.repair.mixture import Mixture
from pyro_vae.posterior.repair.mode import height_and_slope
from pyro_vae.posterior.repair.proposals import Proposal, matched
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

CHAINS, MOVES, LEAPS = 32, 16, 4
"""Of each observation, trajectories of a chain, and leaps of a trajectory."""

SHORTEST, LONGEST = 0.05, 0.5
"""A leap, in units of the candidates' covariance; drawn anew for each trajectory, because a posterior may be
narrower in some places than in others."""

HEAVIER = 0.7
"""Nats above the largest weight of a candidate: a place that weighs so much was not covered."""

OFTEN = 0.08
"""Of the visited places, how many may weigh more than any candidate, by chance."""


class Beyond(NamedTuple):
    """What chains from the edge of the candidates found, for each observation."""

    more: Tensor
    """Whether there is more of the posterior than the candidates show."""
    visited: Proposal
    """A proposal with the moments of the places visited."""


@dataclass(frozen=True)
class Edge:
    """Where what was weighed ends, for each observation."""

    heaviest: Tensor
    """The candidates with the largest weights, (chains, observations, size)."""
    log_weight: Tensor
    """The largest of them."""
    unit: Proposal
    """With the moments of the weighted candidates."""
    proposal: Mixture
    """What they were drawn from."""

    @classmethod
    def of(cls, proposal: Mixture, free: Tensor, log_weight: Tensor) -> Edge:
        """Of candidates (draws, observations, size) and log weights (draws, observations)."""
        log_weight = torch.nan_to_num(log_weight, nan=-torch.inf)
        top = log_weight.topk(CHAINS, dim=0)
        heaviest = free.gather(0, top.indices[..., None].expand(-1, -1, free.shape[-1]))
        return cls(heaviest, top.values[0], matched(free, log_weight), proposal)

    @classmethod
    def joined(cls, parts: Sequence[Edge]) -> Edge:
        """Of all of them."""
        units = [part.unit for part in parts]
        return cls(
            torch.cat([part.heaviest for part in parts], dim=1),
            torch.cat([part.log_weight for part in parts]),
            Proposal(torch.cat([unit.loc for unit in units]), torch.cat([unit.tril for unit in units])),
            Mixture.stacked([part.proposal for part in parts]),
        )


def look_beyond(
    posterior: UnconstrainedPosterior, edge: Edge, generators: Sequence[np.random.Generator]
) -> Beyond:
    """Start at the heaviest of the candidates, and move on.

    References
    ----------
    Neal (2011), MCMC using Hamiltonian dynamics.
    """
    unit = edge.unit
    at = unit.to_white(edge.heaviest)
    height, slope = height_and_slope(posterior, unit, at)
    places, weights = [], []
    for _ in range(MOVES):
        noise = np.stack([generator.standard_normal(at[:, 0].shape) for generator in generators], axis=1)
        other = np.stack([generator.uniform(size=(2, CHAINS)) for generator in generators], axis=2)
        length, chance = torch.from_numpy(other)
        leap = (SHORTEST * (LONGEST / SHORTEST) ** length)[..., None]
        speed, place, there = torch.from_numpy(noise), at, slope
        energy = height - speed.square().sum(-1) / 2
        for _ in range(LEAPS):
            speed = speed + leap / 2 * there
            place = place + leap * speed
            higher, there = height_and_slope(posterior, unit, place)
            speed = speed + leap / 2 * there
        accepted = chance.log() < higher - speed.square().sum(-1) / 2 - energy
        height = torch.where(accepted, higher, height)
        at = torch.where(accepted[..., None], place, at)
        slope = torch.where(accepted[..., None], there, slope)
        places.append(unit.from_white(at))
        weights.append(height)
    visited = torch.cat(places)
    above = torch.cat(weights) - edge.proposal.log_density(visited) - edge.log_weight
    more = (above.amax(0) > HEAVIER) | ((above > 0).double().mean(0) > OFTEN)
    return Beyond(more, matched(visited, torch.zeros_like(above), unit))
