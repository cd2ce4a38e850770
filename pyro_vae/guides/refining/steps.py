r"""Natural-gradient steps of a Normal for each observation towards its posterior.

For one observation, with coordinates u of size D and q = N(μ, A Aᵀ):

1. gradients g of log p(x, u) are taken at the 2D points μ ± √D A eᵢ, which integrate cubics exactly under q;
2. in the coordinates in which q is standard, the mean of Aᵀg is the slope of E_q log p, and half the
   differences of Aᵀg over √D are the curvature H = E_q[−∇² log p] there (Stein's identity);
3. a Newton step moves μ by A H⁻¹ (slope) and A to A H^(−½), both only part of the way where the step is
   longer than the region that is trusted;
4. the step counts only if the ELBO, log p at the 2D points and log det A, does not fall; the region grows
   after success and shrinks after failure.

References
----------
Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited. Khan and Lin (2017),
Conjugate-Computation Variational Inference. Salimbeni, Eleftheriadis and Hensman (2018), Natural Gradients in
Practice. Särkkä (2013), Bayesian Filtering and Smoothing (the cubature rule).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.guides.refining.density import LocalDensity

SMALLEST_CURVATURE, LARGEST_CURVATURE = 1 / 16, 1e4
"""In units of q: it widens at most fourfold at a time, and where the density is convex."""

FIRST_REGION, LARGEST_REGION = 3.0, 1e3
"""How long a step may be, in standard deviations of q."""

POINTS = 65_536
"""How many an iteration looks at."""

GROWTH, SHRINKAGE = 2.0, 0.25

SLACK = 1e-3
"""Nats by which a step may lower the ELBO: rounding in float32. The last word compares with the start."""

STEEPEST = 1e15
"""Slopes beyond, in standard deviations of q, overflow when they are multiplied."""

TINY = 1e-12

STEPS_BETWEEN_LOOKS = 4
"""Steps on another device after which it is asked which observations still move: it would have to wait at
every question. Until then those that do not are computed in vain and stay as they are."""

FAR = 0.25
"""By how much a q shrinks whose points reach where the density is not finite."""


class Normals(NamedTuple):
    """N(loc, factor · factorᵀ) for each observation."""

    loc: Tensor
    """(n, D)."""
    factor: Tensor
    """Any square root of the covariance, (n, D, D), or standard deviations (n, D)."""

    @property
    def log_det(self) -> Tensor:
        """log |det factor|."""
        if self.factor.dim() == 2:
            return self.factor.abs().log().sum(-1)
        return torch.linalg.slogdet(self.factor).logabsdet  # type: ignore[no-any-return]

    def at(self, white: Tensor) -> Tensor:
        """loc + factor · v for points v (points, D), the same for all: (points, n, D)."""
        if self.factor.dim() == 2:
            return self.loc + white[:, None] * self.factor
        return self.loc + torch.einsum("nij,sj->sni", self.factor, white)

    def whitened(self, gradient: Tensor) -> Tensor:
        """factorᵀ · g for gradients (points, n, D)."""
        if self.factor.dim() == 2:
            return gradient * self.factor
        return torch.einsum("nji,snj->sni", self.factor, gradient)

    @classmethod
    def joined(cls, parts: Sequence["Normals"]) -> "Normals":
        """Those of some observations after those of others."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def rows(self, index: Tensor) -> "Normals":
        """Of some observations."""
        return Normals(self.loc[index], self.factor[index])

    def replaced(self, index: Tensor, other: "Normals") -> "Normals":
        """With those of some observations."""
        return Normals(
            self.loc.index_copy(0, index, other.loc), self.factor.index_copy(0, index, other.factor)
        )

    def where(self, chosen: Tensor, other: "Normals") -> "Normals":
        """These for the chosen observations, (n,), and others for the rest."""
        return Normals(*(_chosen(chosen, a, b) for a, b in zip(self, other, strict=True)))

    def full(self) -> "Normals":
        """The same Normals with matrices as factors."""
        return self if self.factor.dim() == 3 else Normals(self.loc, torch.diag_embed(self.factor))

    def triangular(self) -> "Normals":
        """The same Normals with Cholesky factors."""
        if self.factor.dim() == 2:
            return Normals(self.loc, self.factor.abs())
        upper = torch.linalg.qr(self.factor.mT, mode="r").R
        return Normals(self.loc, upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None])


class Refinement(NamedTuple):
    """What the steps came to, for each observation."""

    normals: Normals
    """With Cholesky factors."""
    elbo: Tensor
    elbo_before: Tensor
    """Of these Normals and of those at the start, in nats, by the cubature rule: (n,)."""
    converged: Tensor
    """Whether the last step promised little, (n,)."""

    def rows(self, index: Tensor) -> "Refinement":
        """Of some observations."""
        return Refinement(self.normals.rows(index), *(column[index] for column in self[1:]))

    def replaced(self, index: Tensor, other: "Refinement") -> "Refinement":
        """With other Normals for some observations; where these began stays as it is."""
        return Refinement(
            self.normals.replaced(index, other.normals),
            self.elbo.index_copy(0, index, other.elbo),
            self.elbo_before,
            self.converged.index_copy(0, index, other.converged),
        )


class _NewtonSteps(NamedTuple):
    """Newton steps in the coordinates in which q is standard, with H = vectors · diag(values) · vectorsᵀ."""

    slope: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def none(cls, like: Tensor) -> "_NewtonSteps":
        """Steps that stay where they are."""
        eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        return cls(torch.zeros_like(like), torch.ones_like(like), eye.repeat(len(like), 1, 1))

    @classmethod
    def of(cls, white: Tensor) -> "_NewtonSteps":
        """From the gradients at the cubature points, (2D, n, D)."""
        plus, minus = white.chunk(2)
        curvature = (minus - plus).movedim(0, 1) / (2 * math.sqrt(len(plus)))
        values, vectors = torch.linalg.eigh((curvature + curvature.mT) / 2)
        return cls(white.mean(0), values.clamp(SMALLEST_CURVATURE, LARGEST_CURVATURE), vectors)

    def rows(self, index: Tensor) -> "_NewtonSteps":
        return _NewtonSteps(*(column[index] for column in self))

    def where(self, chosen: Tensor, other: "_NewtonSteps") -> "_NewtonSteps":
        return _NewtonSteps(*(_chosen(chosen, a, b) for a, b in zip(self, other, strict=True)))

    def replaced(self, index: Tensor, other: "_NewtonSteps") -> "_NewtonSteps":
        return _NewtonSteps(*(a.index_copy(0, index, b) for a, b in zip(self, other, strict=True)))

    def taken(self, start: Normals, region: Tensor) -> tuple[Normals, Tensor]:
        """The Normals after the part of the step that lies within the region, and the nats that a quadratic
        log density would gain by all of it."""
        diagonal = start.factor.dim() == 2
        step = _times(self.vectors, _times(self.vectors.mT, self.slope) / self.values)
        share = (region / step.norm(dim=-1).clamp_min(TINY)).clamp_max(1.0)[:, None]
        curvature = _times(self.vectors.square(), self.values) if diagonal else self.values
        promise = ((step * self.slope).sum(-1) + (curvature - 1 - curvature.log()).sum(-1)) / 2
        scale = curvature.pow(-share / 2)
        if diagonal:
            return Normals(start.loc + start.factor * step * share, start.factor * scale), promise
        turned = (self.vectors * scale[:, None]) @ self.vectors.mT
        return Normals(start.loc + _times(start.factor, step * share), start.factor @ turned), promise


def refined_normals(
    density: LocalDensity, start: Normals, *, steps: int, stop: float, rows: Tensor | None = None
) -> Refinement:
    """Refine a Normal for each observation of ``density``, full or diagonal as the start is.

    Observations go a few thousand points at a time, which bounds the memory.

    Parameters
    ----------
    density
        log p(x, u) of the observations.
    start
        Where the steps begin: what an encoder says.
    steps
        How many at most; each takes 2D gradients for an observation that still moves.
    stop
        In nats: an observation's last step is the first that promises less.
    rows
        Which observations of the density these are; all by default.

    Returns
    -------
    Refinement
        By the cubature rule its ELBO is nowhere below that of the start.
    """
    n, size = start.loc.shape
    rows = torch.arange(n, device=start.loc.device) if rows is None else rows
    blocks = torch.arange(n, device=start.loc.device).split(max(1, POINTS // (2 * size)))
    parts = [_refined(density, rows[block], start.rows(block), steps, stop) for block in blocks]
    normals = Normals.joined([part.normals for part in parts])
    return Refinement(normals, *(torch.cat(columns) for columns in zip(*(p[1:] for p in parts), strict=True)))


def looks_of(device: torch.device) -> int:
    """How many steps there are to a look at which observations still move."""
    return 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS


def _refined(density: LocalDensity, rows: Tensor, start: Normals, steps: int, stop: float) -> Refinement:
    """Of some observations."""
    points = _cubature(start.loc)
    best, region = start, start.loc.new_full(start.loc.shape[:1], FIRST_REGION)
    elbo = elbo_before = torch.full_like(region, -math.inf)
    newton = _NewtonSteps.none(start.loc)
    converged = torch.zeros_like(region, dtype=torch.bool)
    left, tried = torch.arange(len(region), device=region.device), start
    moving = torch.ones_like(converged)
    """Of those left: whether the last step of each is still to come."""
    looks = looks_of(region.device)
    last: list[tuple[Tensor, Normals]] = []
    for step in range(steps):
        height, gradient = density.with_gradient(tried.at(points), rows[left])
        white, now, before = tried.whitened(gradient), _elbo(height, tried), elbo[left]
        good = (now > before - SLACK) & (white.abs() < STEEPEST).all(-1).all(0) & moving
        if step == 0:
            elbo_before = now
        else:
            wider = torch.where(
                torch.isfinite(before), (region[left] * GROWTH).clamp_max(LARGEST_REGION), FIRST_REGION
            )
            region = region.index_copy(0, left, torch.where(good, wider, region[left] * SHRINKAGE))
        best = best.replaced(left, tried.where(good, best.rows(left)))
        elbo = elbo.index_copy(0, left, torch.where(good, now, before))
        found = _NewtonSteps.of(torch.where(good[:, None], white, 0.0))
        newton = newton.replaced(left, found.where(good, newton.rows(left)))
        there, promise = _next(best.rows(left), newton.rows(left), region[left], torch.isfinite(elbo[left]))
        tried = there.where(moving, tried)
        short = (promise < stop) & moving
        converged = converged.index_copy(0, left, converged[left] | short)
        moving = moving & ~short
        if (step + 1) % looks and step + 1 < steps:
            continue
        order, count = moving.long().argsort(stable=True), int(moving.sum())  # the only look at the device
        done, on = order[: len(order) - count], order[len(order) - count :]
        last.append((left[done], tried.rows(done)))
        left, tried, moving = left[on], tried.rows(on), moving[on]
        if count == 0:
            break
    last.append((left, tried))
    index, tried = torch.cat([which for which, _ in last]), Normals.joined([normals for _, normals in last])
    now = _elbo(density(tried.at(points), rows[index]), tried)
    good = now > elbo[index]
    best = best.replaced(index, tried.where(good, best.rows(index)))
    elbo = elbo.index_copy(0, index, torch.where(good, now, elbo[index]))
    # Slack adds up: the last word is the comparison with the start.
    worse = ~(elbo >= elbo_before)
    best, elbo = start.where(worse, best), torch.where(worse, elbo_before, elbo)
    constant = start.loc.shape[1] / 2 * (1 + math.log(2 * math.pi))
    return Refinement(best.triangular(), elbo + constant, elbo_before + constant, converged)


def _next(start: Normals, newton: _NewtonSteps, region: Tensor, begun: Tensor) -> tuple[Normals, Tensor]:
    """Where to go from here, and how many nats the whole step promises.

    An observation that has not begun, because the start's points reach where the density is not finite, tries
    the same location with less spread.
    """
    there, promise = newton.taken(start, region)
    shape = (-1, *[1] * (start.factor.dim() - 1))
    less = (FAR * region / FIRST_REGION).reshape(shape)
    loc = torch.where(begun[:, None], there.loc, start.loc)
    factor = torch.where(begun.reshape(shape), there.factor, start.factor * less)
    return Normals(loc, factor), torch.where(begun, promise, math.inf)


def _cubature(like: Tensor) -> Tensor:
    """The points ±√D eᵢ, (2D, D)."""
    size = like.shape[-1]
    axes = math.sqrt(size) * torch.eye(size, dtype=like.dtype, device=like.device)
    return torch.cat([axes, -axes])


def _elbo(density: Tensor, normals: Normals) -> Tensor:
    """Without the constant; −∞ where it is not a number."""
    elbo = density.mean(0) + normals.log_det
    return torch.where(torch.isfinite(elbo), elbo, -math.inf)


def _chosen(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
