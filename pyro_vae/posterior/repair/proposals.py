"""Student-t's to draw from in the place of each posterior, and those with the moments of weighted draws.

Where weights are too unequal to tell a covariance, they are tempered: the proposal then moves part of the way
(Koblents and Míguez, 2015, "A population Monte Carlo scheme with transformed weights and its application to
stochastic kinetic models").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FEWEST_DRAWS, DRAWS_PER_COORDINATE = 500, 50
"""Of a round: a covariance of 20 coordinates has 210 numbers."""

TEMPERED_SHARE = 0.1
"""Effective share of a round's draws behind the moments, at least: where it is less, weights are tempered."""

SETTLED_SHARE = 0.35
"""Effective share of a round's draws with which a proposal is good enough."""

WIDE_SHARE, WIDE = 0.1, 2.0
"""The defensive part of the proposal: how much of it is how much wider (Hesterberg, 1995, "Weighted average
importance sampling and defensive mixture distributions")."""

SMALLEST_FREEDOM = 5.0
"""Degrees of freedom where coordinates are few. With many, tails as heavy would leave most draws far outside:
so many degrees as coordinates keep the radius of the draws near that of a Normal."""

JITTER = 1e-9
"""Relative to the variances: a covariance of few draws may be singular."""


@dataclass(frozen=True)
class Proposal:
    """For each observation a multivariate Student-t, a tenth of it twice as wide."""

    loc: Tensor
    """(observations, size), float64."""
    tril: Tensor
    """Cholesky factors of the scale matrices, (observations, size, size)."""

    @property
    def freedom(self) -> float:
        """Degrees of freedom."""
        return degrees_of_freedom(self.loc.shape[-1])

    def part(self, rows: Tensor) -> Proposal:
        """Of some observations."""
        return Proposal(self.loc[rows], self.tril[rows])

    def replaced(self, rows: Tensor, other: Proposal) -> Proposal:
        """With those of some observations."""
        return Proposal(self.loc.index_copy(0, rows, other.loc), self.tril.index_copy(0, rows, other.tril))

    def from_white(self, white: Tensor) -> Tensor:
        """loc + tril · v, for v of shape (..., observations, size)."""
        return self.loc + torch.einsum("nij,...nj->...ni", self.tril, white)

    def to_white(self, free: Tensor) -> Tensor:
        """The v of which :meth:`from_white` makes these coordinates (draws, observations, size)."""
        eye = torch.eye(self.loc.shape[-1]).to(self.tril)
        inverse = torch.linalg.solve_triangular(self.tril, eye.expand_as(self.tril), upper=False)
        white: Tensor = ((free - self.loc).transpose(0, 1) @ inverse.mT).transpose(0, 1)
        return white

    def draw(self, draws: int, generators: Sequence[np.random.Generator]) -> Tensor:
        """(draws, observations, size). Each observation has a generator of its own, so its draws do not
        depend on which others are drawn for."""
        noise = torch.from_numpy(np.stack([self.noise(draws, generator) for generator in generators], axis=1))
        return self.from_white(noise)

    def log_density(self, free: Tensor) -> Tensor:
        """Of coordinates (draws, observations, size), in nats, (draws, observations)."""
        squares = self.to_white(free).square().sum(-1)
        return log_student(squares, self.loc.shape[-1]) - self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def noise(self, draws: int, generator: np.random.Generator) -> Array:
        """White draws of one observation, (draws, size)."""
        size = self.loc.shape[-1]
        normal = generator.standard_normal((draws, size))
        radius = np.sqrt(self.freedom / generator.chisquare(self.freedom, (draws, 1)))
        white: Array = normal * (radius * np.where(generator.random((draws, 1)) < WIDE_SHARE, WIDE, 1.0))
        return white


def degrees_of_freedom(size: int) -> float:
    """Of proposals with so many coordinates."""
    return max(SMALLEST_FREEDOM, float(size))


def log_student(squares: Tensor, size: int) -> Tensor:
    """The density of a standard proposal with so many coordinates, whose squares have this sum, in nats."""
    freedom = degrees_of_freedom(size)
    constant = (
        math.lgamma((freedom + size) / 2) - math.lgamma(freedom / 2) - size / 2 * math.log(freedom * math.pi)
    )

    def student(share: float, scale: float) -> Tensor:
        tail = torch.log1p(squares / (freedom * scale**2)).mul_(-(freedom + size) / 2)
        return tail.add_(constant + math.log(share) - size * math.log(scale))

    return torch.logaddexp(student(1 - WIDE_SHARE, 1.0), student(WIDE_SHARE, WIDE))


def matched(
    free: Tensor, log_weight: Tensor, before: Proposal | None = None, *, effective: float = TEMPERED_SHARE
) -> Proposal:
    """The proposal with the moments of weighted draws, (draws, observations, size), (draws, observations).

    Weights are tempered where a smaller share of the draws than this is ``effective``. Observations whose
    weights tell nothing keep the proposal ``before`` or, without one, the moments of the draws without
    weights.
    """
    draws, _, size = free.shape
    points, log_weight = free.transpose(0, 1), log_weight.contiguous()
    possible = torch.isfinite(points.sum(-1))
    usable = possible.T & torch.isfinite(log_weight)
    told = usable.sum(0) > size + 1
    log_weight = torch.where(usable, log_weight, -torch.inf)
    if effective > 0:
        log_weight = tempered(log_weight, effective * draws)
    log_weight = torch.where(told, log_weight, torch.where(possible.T, 0.0, -torch.inf))
    weight = log_weight.softmax(0).T[..., None]
    if not possible.all():
        points = torch.where(possible[..., None], points, 0.0)
    loc = (weight.mT @ points)[:, 0]
    spread = (points - loc[:, None]) * weight.sqrt()
    covariance = spread.mT @ spread
    sane = torch.isfinite(covariance).all(-1).all(-1)  # one overflow must not stop the others
    covariance = torch.where(sane[:, None, None], covariance, torch.eye(size).to(covariance))
    behind = effective_draws(log_weight)
    found = Proposal(torch.where(sane[:, None], loc, 0.0), _cholesky(covariance, behind))
    if before is None:
        return found
    told = told & sane
    return Proposal(
        torch.where(told[:, None], found.loc, before.loc),
        torch.where(told[:, None, None], found.tril, before.tril),
    )


def round_draws(size: int) -> int:
    """How many draws of each observation a round takes with this number of coordinates."""
    return max(FEWEST_DRAWS, DRAWS_PER_COORDINATE * size)


def effective_draws(log_weight: Tensor) -> Tensor:
    """How many independent draws the weighted ones are worth: (Σw)² / Σw², for each column (draws, …).

    >>> effective_draws(torch.tensor([[0.0], [0.0], [-torch.inf]]))
    tensor([2.])
    """
    log_weight = torch.where(torch.isnan(log_weight), -torch.inf, log_weight)
    effective = (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()
    return torch.nan_to_num(effective, nan=0.0)  # of weights that are all zero


def tempered(log_weight: Tensor, goal: float) -> Tensor:
    """The weights to the largest power of at most 1 that leaves ``goal`` effective draws, within a percent,
    and to 2⁻⁴⁰ if none does."""
    few = (effective_draws(log_weight) < goal).nonzero()[:, 0]
    if len(few) == 0:
        return log_weight
    unequal = log_weight[:, few]

    def powered(halvings: Tensor) -> Tensor:
        power = 0.5**halvings
        return torch.where(unequal > -torch.inf, power * unequal, -torch.inf)  # 0 · −∞ is not a number

    low = torch.zeros_like(unequal[0])
    high = torch.full_like(low, 40.0)
    for _ in range(12):
        middle = (low + high) / 2
        good = effective_draws(powered(middle)) >= goal
        low, high = torch.where(good, low, middle), torch.where(good, middle, high)
    return log_weight.index_copy(1, few, powered(high))


def _cholesky(covariance: Tensor, effective: Tensor) -> Tensor:
    """Factors of covariances, their correlations shrunk as the effective draws are few."""
    size = covariance.shape[-1]
    shrinkage = (size / (size + effective))[:, None, None]
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    floor = JITTER * variances.amax(-1, keepdim=True) + torch.finfo(covariance.dtype).tiny
    shrunk = (1 - shrinkage) * covariance + torch.diag_embed(
        shrinkage[..., 0] * variances + JITTER * variances + floor
    )
    factors: Tensor = torch.linalg.cholesky(shrunk)
    return factors
