"""Modes of each posterior: starts climb by gradients, and Newton's method finds the curvature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.posterior.repair.proposals import Proposal
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

ITERATIONS = 50

NEAR = 0.05
"""A Newton step, in standard deviations, at which the mode counts as found."""

SMALLEST_CURVATURE, LARGEST_CURVATURE = 1 / 16, 1e4
"""In units of the Normal before: it widens at most fourfold at a time, and where the density is convex."""

STEEPEST = 1e100
"""Slopes beyond overflow when they are multiplied, and do not lead anywhere."""

LENGTHS = 0.5 ** torch.arange(10)
"""Of the Newton step, to choose from."""

CLIMBS = 16
"""Steps of a climb: enough to tell where it leads, Newton's method goes on from there."""

STEPS_BETWEEN = 4
"""Steps after which climbs are given up that have come home."""


def climb(
    posterior: UnconstrainedPosterior,
    unit: Proposal,
    starts: Tensor,
    known: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Where the density leads from these starts (starts, observations, size), and how high, by gradient steps
    in the coordinates in which ``unit`` is standard, each as long as the two before say (Barzilai and
    Borwein, 1988) and kept if it climbs. A climb ends early at a place ``known(rows, coordinates, height)``.
    """
    count, n, _ = starts.shape
    every = torch.arange(n).repeat(count)
    ends, tops = starts.flatten(0, 1).clone(), torch.full((count * n,), -torch.inf, dtype=starts.dtype)
    left, rows = torch.arange(count * n), every
    at = unit.part(rows).to_white(ends[None])[0]
    height, slope = height_and_slope(posterior.part(rows.numpy()), unit.part(rows), at[None])
    height, slope = height[0], slope[0]
    radius = 1 + at.norm(dim=-1, keepdim=True) / 4
    rate = torch.ones_like(radius)
    for step in range(CLIMBS):
        if step and step % STEPS_BETWEEN == 0:
            place = unit.part(rows).from_white(at)
            ends[left], tops[left] = place, height
            away = (~known(rows, place, height)).nonzero()[:, 0]
            if len(away) == 0:
                break
            left, rows, at, height, slope, radius, rate = (
                part[away] for part in (left, rows, at, height, slope, radius, rate)
            )
        move = rate * slope
        length = move.norm(dim=-1, keepdim=True)
        move = move * (radius / length.clamp_min(1e-300)).clamp_max(1.0)
        now = posterior.part(rows.numpy()), unit.part(rows)
        higher, there = (part[0] for part in height_and_slope(*now, (at + move)[None]))
        climbs = (higher > height)[..., None]
        curved = (move * (slope - there)).sum(-1, keepdim=True)
        fitted = move.square().sum(-1, keepdim=True) / curved.clamp_min(1e-300)
        faster = torch.where(curved > 0, fitted, 4 * rate)
        rate = torch.where(climbs, faster, rate / 4).clamp(1e-8, 1e8)
        radius = torch.where(climbs, 2 * radius, torch.minimum(radius, length) / 4)
        at, slope = torch.where(climbs, at + move, at), torch.where(climbs, there, slope)
        height = torch.where(climbs[..., 0], higher, height)
    else:
        ends[left], tops[left] = unit.part(rows).from_white(at), height
    return ends.unflatten(0, (count, n)), tops.unflatten(0, (count, n))


def fit_mode(posterior: UnconstrainedPosterior, start: Proposal) -> Proposal:
    """Mode of each posterior on the reals, and the Cholesky factor of its inverse curvature.

    The curvature is that of differences of gradients one standard deviation to either side, along each axis
    of the Normal found so far. It needs first derivatives only, and sees past the kinks of a network of
    rectified units, whose second derivatives miss them.
    """
    found, left = start, torch.arange(len(start.loc), device=start.loc.device)
    for _ in range(ITERATIONS):
        before = found.part(left)
        after, step = _newton(posterior.part(left.numpy()), before)
        found = found.replaced(left, after)
        left = left[step > NEAR]
        if len(left) == 0:
            break
    return found


def _newton(posterior: UnconstrainedPosterior, unit: Proposal) -> tuple[Proposal, Tensor]:
    """One step in the coordinates in which ``unit`` is standard, and how long it was."""
    n, size = unit.loc.shape
    sides = torch.cat([torch.zeros(1, size), torch.eye(size), -torch.eye(size)]).to(unit.loc)
    gradient = _gradient(posterior, unit, sides[:, None].expand(-1, n, -1))
    slope = gradient[0]
    curvature = (gradient[1 + size :] - gradient[1 : 1 + size]).movedim(0, 1) / 2
    values, axes = torch.linalg.eigh((curvature + curvature.mT) / 2)
    values = values.clamp(SMALLEST_CURVATURE, LARGEST_CURVATURE)
    newton = (axes @ ((axes.mT @ slope[..., None]) / values[..., None]))[..., 0]
    tries = torch.cat([LENGTHS, LENGTHS.new_zeros(1)]).to(unit.loc)[:, None, None] * newton
    heights = torch.nan_to_num(posterior.log_density(unit.from_white(tries)), nan=-torch.inf)
    best = heights.argmax(0)
    step = tries[best, torch.arange(n, device=best.device)]
    factor = torch.linalg.cholesky(axes @ ((1 / values)[..., None] * axes.mT))
    return Proposal(unit.from_white(step), unit.tril @ factor), newton.norm(dim=-1)


def _gradient(posterior: UnconstrainedPosterior, unit: Proposal, white: Tensor) -> Tensor:
    """Of the log density, (points, observations, size); zero where it is not finite."""
    return height_and_slope(posterior, unit, white)[1]


def height_and_slope(
    posterior: UnconstrainedPosterior, unit: Proposal, white: Tensor
) -> tuple[Tensor, Tensor]:
    """The log density (points, observations), −∞ where it is no number, and its gradient in white coordinates
    (points, observations, size), zero where it is not finite."""
    height, gradient = posterior.value_and_gradient(unit.from_white(white))
    slope = torch.einsum("nij,sni->snj", unit.tril, gradient)
    height = torch.nan_to_num(height, nan=-torch.inf)
    return height, torch.where(abs(slope) < STEEPEST, slope, 0.0)
