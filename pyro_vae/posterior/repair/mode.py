"""The Normal at the mode of each posterior, found by Newton's method from far away."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.posterior.repair.proposals import Proposal
from pyro_vae.posterior.unconstrained import UnconstrainedPosterior

__all__ = ["fit_mode"]

ITERATIONS = 50

NEAR = 0.05
"""A Newton step, in standard deviations, at which the mode counts as found."""

SMALLEST_CURVATURE, LARGEST_CURVATURE = 1 / 16, 1e4
"""In units of the Normal before: it widens at most fourfold at a time, and where the density is convex."""

STEEPEST = 1e100
"""Slopes beyond overflow when they are multiplied, and do not lead anywhere."""

LENGTHS = 0.5 ** torch.arange(10)
"""Of the Newton step, to choose from."""


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
    heights = torch.nan_to_num(posterior.at(unit.from_white(tries)).log_density, nan=-torch.inf)
    best = heights.argmax(0)
    step = tries[best, torch.arange(n, device=best.device)]
    factor = torch.linalg.cholesky(axes @ ((1 / values)[..., None] * axes.mT))
    return Proposal(unit.from_white(step), unit.tril @ factor), newton.norm(dim=-1)


def _gradient(posterior: UnconstrainedPosterior, unit: Proposal, white: Tensor) -> Tensor:
    """Of the log density, (points, observations, size); zero where it is not finite."""
    at = white.clone().requires_grad_()
    with posterior.pair.evaluation(0), torch.enable_grad():
        total = posterior.log_density(unit.from_white(at)).sum()
        (gradient,) = torch.autograd.grad(total, at)
    return torch.where(abs(gradient) < STEEPEST, gradient, 0.0)
