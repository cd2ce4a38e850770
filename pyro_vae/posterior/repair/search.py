"""Other modes of each posterior, looked for from dispersed starts.

Draws that begin in one place know nothing of a mode elsewhere, and neither do their weights. So the search
begins at draws from the prior, at draws for other observations, and at the guide's own draws stretched away
from their centre; the best start of each neighbourhood climbs, and what it reaches counts as a mode if what
is known already does not explain it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.posterior.repair.mixture import Mixture
from pyro_vae.posterior.repair.mode import climb
from pyro_vae.posterior.repair.proposals import Proposal
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

Draws = dict[str, Tensor]

FROM_EACH = 96
"""Starts from each source: the prior, other observations, the stretched guide."""

STRETCHES = (1.0, 30.0)
"""How far from its centre the guide's draws are moved, as a multiple of their distance."""

STARTS = 16
"""Of all, how many climb: the best of its neighbourhood each."""

UNEXPLAINED = math.log(10.0)
"""Nats by which a posterior is higher somewhere than what is known of it says, if there is something new."""

LOWEST, LOWER_BY_SIZE = 12.0, 0.5
"""Nats below the highest end, for all and for each coordinate, down to which an end may be a mode that
counts: it would have to be wider than the highest by as much."""

SAME = 0.5
"""Standard deviations between two locations that are one mode."""

REFINING_STEPS, REFINED = 12, 0.1
"""Of the Normals at modes, and nats: see :class:`pyro_vae.guides.Refined`."""

MOST_MODES = 6
"""Beside the one at hand."""

SMALLEST_SHARE, OFTEN = 0.01, 0.2
"""Of the mass of a mode that draws must have visited, and how often at least, of how often its mass asks."""

SEARCH_KEY = 11
"""Keeps these streams apart from those of other draws with the same seed."""

NOT_LOOKED_AT = (
    "modes to which none of the starts leads: narrow ones beside wide ones in many dimensions, and any that "
    "are far from all that the prior, the guide and its draws for other observations cover"
)

SMALLEST_MASS = math.log(1e-3)
"""Of a mode, relative to all: a smaller one moves no mean and no width."""

LEAST_SHARE = 0.05
"""Of a mode in the mixture that draws begin with, because its mass is only a guess."""


@dataclass(frozen=True)
class Modes:
    """What is known of each posterior: Normals and their masses. The first is where the guide is."""

    proposals: tuple[Proposal, ...]
    """Each for all observations."""
    log_mass: Tensor
    """(observations, modes), in nats, unnormalized; −inf where an observation has no such mode."""

    @property
    def share(self) -> Tensor:
        """Of the mass of all, (observations, modes)."""
        return self.log_mass.softmax(-1)

    def log_density(self, free: Tensor) -> Tensor:
        """Of all together, unnormalized, (draws, observations)."""
        parts = [
            proposal.log_density(free) + mass
            for proposal, mass in zip(self.proposals, self.log_mass.T, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    def mixture(self) -> Mixture:
        """To begin with."""
        share = torch.nan_to_num(self.share, nan=1.0)
        floored = torch.where(share > math.exp(SMALLEST_MASS), share.clamp_min(LEAST_SHARE), 0.0)
        return Mixture.of(*self.proposals, share=floored / floored.sum(1, keepdim=True))

    def counted(self) -> NDArray[np.int64]:
        """How many of each observation hold a material share of the mass."""
        return (self.share > SMALLEST_SHARE).sum(1).clamp_min(1).numpy()

    def reached_by(self, free: Tensor, log_evidence: Tensor) -> Tensor:
        """Of which observations draws (draws, observations, size) lie in every mode about as often as its
        mass asks, if the evidence is what they say."""
        size = free.shape[-1]
        radius = size + 3 * (2 * size) ** 0.5
        reached = torch.ones(free.shape[1], dtype=torch.bool)
        for proposal, mass in zip(self.proposals[1:], self.log_mass.T[1:], strict=True):
            share = (mass - log_evidence).clamp_max(0.0).exp()
            there = (share >= SMALLEST_SHARE).nonzero()[:, 0]
            white = proposal.part(there).to_white(free[:, there])
            inside = (white.square().sum(-1) <= radius).double().mean(0)
            reached[there] &= inside >= OFTEN * share[there]
        return reached

    def explains(self, rows: Tensor, free: Tensor, height: Tensor) -> Tensor:
        """Whether places (rows, size) of some observations, which are as high as that, are inside of the
        first mode and no higher than it says."""
        own = self.proposals[0].part(rows)
        inside = own.to_white(free[None])[0].square().sum(-1) <= free.shape[-1]
        return inside & (height - own.log_density(free[None])[0] - self.log_mass[rows, 0] < UNEXPLAINED)

    def covers(self, rows: Tensor, loc: Tensor) -> Tensor:
        """Whether a location (rows, size) of some observations is that of a mode known before."""
        same = torch.zeros(len(rows), dtype=torch.bool)
        for proposal, mass in zip(self.proposals, self.log_mass.T, strict=True):
            away = proposal.part(rows).to_white(loc[None])[0].norm(dim=-1)
            same |= (away < SAME) & (mass[rows] > -torch.inf)
        return same


def dispersed(
    posterior: UnconstrainedPosterior, free: Tensor, values: Draws, rows: NDArray[np.int64], seed: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Where a search may start, (starts, observations, size), and where that comes from.

    Parameters
    ----------
    posterior, free
        Of some observations, and the guide's draws for them, (draws, observations, size).
    values
        The guide's draws for every observation, by site (draws, all observations, ...).
    rows
        Which of all observations these are.
    seed
        Of what is chosen.
    """
    generators = [np.random.default_rng([seed, SEARCH_KEY, row]) for row in rows.tolist()]
    parts, sources = [_stretched(free, generators)], ["the guide's draws, stretched"]
    with (
        suppress(Exception),
        posterior.evaluation(seed, SEARCH_KEY, draws=FROM_EACH),
    ):  # a prior may not be drawn from
        parts.append(posterior.from_prior(FROM_EACH).to(free))
        sources.append("the prior")
    draws, everyone = next(iter(values.values())).shape[:2]
    if everyone > 1:
        shift = np.stack(
            [generator.integers(1, everyone, size=FROM_EACH) for generator in generators], axis=1
        )
        draw = np.stack([generator.integers(draws, size=FROM_EACH) for generator in generators], axis=1)
        other = (rows + shift) % everyone
        chosen = posterior.coordinates({site: value[draw, other] for site, value in values.items()})
        parts.append(chosen.to(free))
        sources.append("draws for other observations")
    return torch.cat(parts), tuple(sources)


def _stretched(free: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """Some draws (draws, observations, size), moved away from their centre."""
    centre, (low, high) = free[: 2 * FROM_EACH].median(0).values, np.log(STRETCHES)
    chosen, lengths = [], []
    for generator in generators:
        chosen.append(generator.integers(len(free), size=FROM_EACH))
        lengths.append(generator.uniform(low, high, (FROM_EACH, 1)))
    which, length = (torch.from_numpy(np.stack(column, axis=1)) for column in (chosen, lengths))
    return centre + length.exp() * (free[which, torch.arange(free.shape[1])] - centre)


def find_modes(posterior: UnconstrainedPosterior, own: Proposal, log_evidence: Tensor, pool: Tensor) -> Modes:
    """Modes that starts from a pool (starts, observations, size) lead to, beside one's own, which is known to
    have that log evidence."""
    height = torch.nan_to_num(posterior.log_density(pool), nan=-torch.inf)
    starts = torch.cat([own.loc[None], _best_of_each_neighbourhood(own, pool, height)])
    known = Modes((own,), torch.nan_to_num(log_evidence, nan=-torch.inf)[:, None])
    ends, height = climb(posterior, own, starts, known.explains)
    lowest = height.amax(0) - LOWEST - LOWER_BY_SIZE * ends.shape[-1]
    height = torch.where(height > lowest, height, -torch.inf)
    for _ in range(MOST_MODES):
        height = torch.where(height - known.log_density(ends) > UNEXPLAINED, height, -torch.inf)
        best = height.argmax(0)
        new = torch.isfinite(height.amax(0)).nonzero()[:, 0]
        if len(new) == 0:
            break
        found = posterior.part(new.numpy()).refined(
            ends[best[new], new], own.tril[new], steps=REFINING_STEPS, stop=REFINED
        )
        mass = torch.full_like(known.log_mass[:, 0], -torch.inf)
        mass[new] = torch.nan_to_num(found.elbo, nan=-torch.inf)
        mass[new] = torch.where(known.covers(new, found.normals.loc), -torch.inf, mass[new])
        known = Modes(
            (*known.proposals, own.replaced(new, Proposal(*found.normals))),
            torch.cat([known.log_mass, mass[:, None]], dim=1),
        )
        height[best[new], new] = -torch.inf
    return known


def _best_of_each_neighbourhood(unit: Proposal, pool: Tensor, height: Tensor) -> Tensor:
    """The highest of the pool, then the highest of what is not near it, and so on: (starts, observations,
    size)."""
    white = unit.to_white(pool).transpose(0, 1).float().contiguous()
    each = torch.arange(len(white))
    near = len(pool) // STARTS
    left = torch.where(torch.isfinite(white).all(-1), height.T, -torch.inf)
    chosen = []
    for _ in range(STARTS):
        best = left.argmax(1)
        chosen.append(pool[best, each])
        distance = (white - white[each, best, None]).square().sum(-1)
        distance = torch.where(left > -torch.inf, distance, torch.inf)
        taken = distance.topk(near, dim=1, largest=False, sorted=False).indices
        left = left.scatter(1, taken, -torch.inf)
        left[each, best] = -torch.inf
    return torch.stack(chosen)
