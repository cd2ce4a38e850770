"""Importance sampling from a mixture of Student-t's that adapts itself to the posterior of each observation.

Shares, locations and covariances of the components follow those of the mixture's own weighted draws, round
after round (Cappé, Douc, Guillin, Marin and Robert, 2008, "Adaptive importance sampling in general mixture
classes"). Where that is not enough, a component is added where the weights are largest (Raftery and Bao,
2010, "Estimating and projecting trends in HIV/AIDS generalized epidemics using incremental mixture importance
sampling").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.posterior.repair.proposals import (
    SETTLED_SHARE,
    TEMPERED_SHARE,
    Proposal,
    effective_draws,
    log_student,
    matched,
    round_draws,
    tempered,
)
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

ROUNDS = 8
"""At most."""

MOST_COMPONENTS = 12

GUIDE_SHARE = 0.2
"""Of the draws that come from where the guide is: modes that its draws had visited stay in sight (Hesterberg,
1995, "Weighted average importance sampling and defensive mixture distributions")."""

SMALLEST_SHARE = 0.02
"""Of a component: below, so few draws come from it that its covariance would not be known."""

NEW_SHARE = 0.2
"""Of a component that is added."""

NEIGHBOURS = 0.1
"""Of a round's weighted draws: those around the largest weight give a new component its covariance."""


@dataclass(frozen=True)
class Mixture:
    """For each observation a mixture of as many Student-t's as it needs."""

    share: Tensor
    """(observations, components), each row's sum is 1; what a row does not need is 0."""
    loc: Tensor
    tril: Tensor
    """(observations, components, size) and (observations, components, size, size)."""

    @classmethod
    def of(cls, *parts: Proposal, share: Tensor | None = None) -> Mixture:
        """Of these, in equal shares unless ``share`` (observations, parts) is given."""
        loc = torch.stack([part.loc for part in parts], dim=1)
        if share is None:
            share = torch.full(loc.shape[:2], 1 / len(parts)).to(loc)
        return cls(share, loc, torch.stack([part.tril for part in parts], dim=1))

    @classmethod
    def stacked(cls, parts: Sequence[Mixture]) -> Mixture:
        """Of the observations of all parts."""
        count = max(part.components for part in parts)
        padded = [part._padded(count) for part in parts]
        columns = [[getattr(part, name) for part in padded] for name in ("share", "loc", "tril")]
        return cls(*map(torch.cat, columns))

    @property
    def components(self) -> int:
        """Of the observation that needs most."""
        return self.share.shape[1]

    def component(self, k: int) -> Proposal:
        """One of them for every observation."""
        return Proposal(self.loc[:, k], self.tril[:, k])

    def part(self, rows: Tensor) -> Mixture:
        """Of some observations, without the components that none of them needs."""
        share = self.share[rows]
        needed = (share > 0).any(0)
        return Mixture(share[:, needed], self.loc[rows][:, needed], self.tril[rows][:, needed])

    def replaced(self, rows: Tensor, other: Mixture) -> Mixture:
        """With those of some observations."""
        count = max(self.components, other.components)
        mine, theirs = self._padded(count), other._padded(count)
        return Mixture(
            mine.share.index_copy(0, rows, theirs.share),
            mine.loc.index_copy(0, rows, theirs.loc),
            mine.tril.index_copy(0, rows, theirs.tril),
        )

    def joined(self, other: Mixture, share: float | Tensor) -> Mixture:
        """A mixture of the two, the other with this share (of all, or of each observation)."""
        share = torch.as_tensor(share, dtype=self.share.dtype).expand(len(self.share))[:, None]
        return Mixture(
            torch.cat([(1 - share) * self.share, share * other.share], dim=1),
            torch.cat([self.loc, other.loc], dim=1),
            torch.cat([self.tril, other.tril], dim=1),
        )

    def evenly(self) -> Mixture:
        """The same components in equal shares."""
        needed = (self.share > 0).to(self.share)
        return Mixture(needed / needed.sum(1, keepdim=True), self.loc, self.tril)

    def moments(self) -> Proposal:
        """One component with the mean and the covariance of all."""
        loc = torch.einsum("nk,nki->ni", self.share, self.loc)
        apart = self.loc - loc[:, None]
        covariance = torch.einsum("nk,nkij->nij", self.share, self.tril @ self.tril.mT)
        covariance = covariance + torch.einsum("nk,nki,nkj->nij", self.share, apart, apart)
        return Proposal(loc, torch.linalg.cholesky(covariance))

    def draw(self, draws: int, generators: Sequence[np.random.Generator]) -> Tensor:
        """(draws, observations, size), each component's part in proportion to its share, one after the other.
        Each observation has a generator of its own, so its draws do not depend on which others are drawn
        for."""
        shares, locs, trils = self.share.numpy(), self.loc.numpy(), self.tril.numpy()
        noise, free = self.component(0).noise, np.empty((len(shares), draws, locs.shape[-1]))
        for row, share, loc, tril, generator in zip(free, shares, locs, trils, generators, strict=True):
            ends, white = _in_proportion(share, draws, generator), noise(draws, generator)
            for k in np.flatnonzero(np.diff(ends)):
                own = slice(ends[k], ends[k + 1])
                row[own] = loc[k] + white[own] @ tril[k].T
        return torch.from_numpy(free).transpose(0, 1)

    def log_density(self, free: Tensor) -> Tensor:
        """Of coordinates (draws, observations, size), in nats, (draws, observations)."""
        return torch.stack([functools.reduce(torch.logaddexp, parts) for parts in self._each(free)], dim=1)

    def log_densities(self, free: Tensor) -> Tensor:
        """With its share, of each component, (draws, observations, components)."""
        draws, n = free.shape[:2]
        found = torch.full((n, self.components, draws), -torch.inf).to(free)
        for own, needed, parts in zip(found, self.share > 0, self._each(free), strict=True):
            own[needed] = parts
        return found.permute(2, 0, 1)

    def _each(self, free: Tensor) -> Iterator[Tensor]:
        """For an observation, the densities of the components that it needs with their shares, (components,
        draws). One after the other, because what one needs stays near the processor."""
        size = free.shape[-1]
        row, k = (self.share > 0).nonzero(as_tuple=True)
        tril, apart = self.tril[row, k], self.loc[row, 0] - self.loc[row, k]
        inverse = torch.linalg.solve_triangular(tril, torch.eye(size).to(tril).expand_as(tril), upper=False)
        constant = self.share[row, k].log() - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        needed = (self.share > 0).sum(1).tolist()
        parts = (
            column.split(needed) for column in (inverse, (inverse @ apart[..., None]), constant[:, None])
        )
        for points, centre, by, from_there, own in zip(free.unbind(1), self.loc[:, 0], *parts, strict=True):
            away = (points - centre).T
            white = torch.addmm(from_there.flatten(0, 1), by.flatten(0, 1), away).square_()
            yield log_student(white.unflatten(0, (-1, size)).sum(1), size) + own

    def _padded(self, count: int) -> Mixture:
        more = count - self.components
        if more == 0:
            return self
        n = len(self.share)
        return Mixture(
            torch.cat([self.share, self.share.new_zeros(n, more)], dim=1),
            torch.cat([self.loc, self.loc[:, :1].expand(-1, more, -1)], dim=1),
            torch.cat([self.tril, self.tril[:, :1].expand(-1, more, -1, -1)], dim=1),
        )


class Adapted(NamedTuple):
    """What the rounds of an adaptation came to, for each observation."""

    mixture: Mixture
    """Of the round whose draws were worth most, the guide's part among it."""
    worth: Tensor
    """The share of its draws that were effective."""
    least: Tensor
    """The largest of the rounds' log evidences less four standard errors: a later one may not be lower."""

    def part(self, rows: Tensor) -> Adapted:
        """Of some observations."""
        return Adapted(self.mixture.part(rows), self.worth[rows], self.least[rows])


def adapt_mixture(
    posterior: UnconstrainedPosterior,
    mixture: Mixture,
    guide: Proposal,
    generators: Sequence[np.random.Generator],
    *,
    rounds: int = ROUNDS,
) -> Adapted:
    """Move the components to where the weights of their draws are, observation by observation, until these
    are worth enough. A fifth of every round's draws come from where the guide is.

    The draws of these rounds choose the proposal, so they must not judge it: draw anew for a diagnosis.
    """
    draws = round_draws(posterior.size)
    left = torch.arange(len(mixture.share))
    defended = Mixture.of(guide)
    least = torch.full((len(left),), -torch.inf, dtype=torch.float64)
    best = mixture.joined(defended, GUIDE_SHARE)
    worth = torch.full_like(least, -1.0)
    for turn in range(rounds):
        now = mixture.part(left).joined(defended.part(left), GUIDE_SHARE)
        free = now.draw(draws, [generators[i] for i in left.tolist()])
        densities = now.log_densities(free)
        log_weight = posterior.part(left.numpy()).log_density(free) - densities.logsumexp(-1)
        effective = effective_draws(log_weight) / draws
        least[left] = torch.maximum(least[left], least_log_evidence(log_weight))
        better = (effective > worth[left]).nonzero()[:, 0]
        if len(better):
            best = best.replaced(left[better], now.part(better))
            worth[left[better]] = effective[better]
        unsettled = (effective < SETTLED_SHARE).nonzero()[:, 0]
        if len(unsettled) == 0 or turn == rounds - 1:
            break
        left = left[unsettled]
        moved = _moved(now, free[:, unsettled], log_weight[:, unsettled], densities[:, unsettled], unsettled)
        mixture = mixture.replaced(left, moved)
    return Adapted(best, worth, least)


def least_log_evidence(log_weight: Tensor) -> Tensor:
    """What the log evidence is at least, of weights (draws, observations): four standard errors below its
    estimate."""
    draws, worth = len(log_weight), effective_draws(log_weight)
    log_weight = torch.nan_to_num(log_weight, nan=-torch.inf, neginf=-torch.inf)
    error = ((draws / worth.clamp_min(1e-300) - 1).clamp_min(0) / (draws - 1)).sqrt()
    return log_weight.logsumexp(0) - math.log(draws) - 4 * error


def _moved(now: Mixture, free: Tensor, log_weight: Tensor, densities: Tensor, rows: Tensor) -> Mixture:
    """The mixture of these rows after one round, without the guide, which comes last, and with one component
    more where it is still too thin."""
    size = free.shape[-1]
    now = Mixture(now.share[rows], now.loc[rows], now.tril[rows])
    log_weight = torch.nan_to_num(log_weight, nan=-torch.inf, neginf=-torch.inf)
    log_target = log_weight + densities.logsumexp(-1)
    told = torch.isfinite(log_weight).sum(0) > size + 1
    log_own = torch.nan_to_num(densities - densities.logsumexp(-1, keepdim=True), nan=-torch.inf)
    weight = torch.nan_to_num(tempered(log_weight, TEMPERED_SHARE * len(free)))
    behind = effective_draws(weight[..., None] + log_own)
    share = torch.nan_to_num((weight.softmax(0)[..., None] * log_own.exp()).sum(0))[:, :-1]
    loc, tril = now.loc[:, :-1].clone(), now.tril[:, :-1].clone()
    enough = (now.share[:, :-1] > 0) & told[:, None] & (behind[:, :-1] > 2 * size)
    row, k = enough.nonzero(as_tuple=True)
    if len(row):
        part = matched(free[:, row], weight[:, row] + log_own[:, row, k], effective=0)
        loc[row, k], tril[row, k] = part.loc, part.tril
    share = torch.where(told[:, None], share, now.share[:, :-1])
    share = torch.where(now.share[:, :-1] > 0, share.clamp_min(SMALLEST_SHARE), 0.0)
    moved = Mixture(share / share.sum(1, keepdim=True), loc, tril)
    if moved.components >= MOST_COMPONENTS:
        return moved
    thin = torch.nan_to_num(log_target - moved.log_density(free), nan=-torch.inf, neginf=-torch.inf)
    more = Mixture.of(_around_the_largest(free, thin, log_weight))
    return moved.joined(more, torch.where(told, NEW_SHARE, 0.0))


def _around_the_largest(free: Tensor, thin: Tensor, log_weight: Tensor) -> Proposal:
    """A component at the draw that a mixture covers worst, with the covariance of its neighbours."""
    at = free[thin.argmax(0), torch.arange(free.shape[1])]
    everywhere = matched(free, log_weight)
    distance = Proposal(at, everywhere.tril).to_white(free).square().sum(-1)
    near = distance <= distance.quantile(NEIGHBOURS, dim=0)
    return Proposal(at, matched(free, torch.where(near, log_weight, -torch.inf), everywhere).tril)


def _in_proportion(share: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Where the draws of each component begin and end: systematic, so that every share is met to within one
    draw."""
    below = np.cumsum(share) * draws - generator.uniform()
    below[np.flatnonzero(share > 0)[-1] :] = draws
    return np.concatenate([[0], np.ceil(below).clip(0, draws).astype(int)])
