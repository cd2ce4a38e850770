"""Judge the largest importance weights: k̂, their smoothing, and how much evidence they may be missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from pyro_vae.posterior.tails import fit_tails, tail_quantiles

Array = NDArray[np.float64]

FLAT = 0.05
"""Nats. A tail whose log weights lie closer together is bounded as far as its draws can tell: a Pareto fitted
to differences that small finds any k̂, and the evidence does not depend on them."""

TIED_SHARE = 0.25
"""Of the tail's weights, how many differ at least. With fewer the weights have atoms, as discrete latents
give them, and a Pareto, which has none, cannot be fitted."""

SEEN_AGAIN = 10
"""How often the largest of tied weights must have been drawn to count as the largest there is."""

ROUNDING = 1e-9
"""Nats. Log weights that lie closer together are one number."""

SHAPE_ERRORS = 1.25
"""How many standard errors above k̂ the shape is taken to be where the missing tail is reckoned."""

LARGEST_SHAPE, TELLING_ERRORS = 0.5, 2.5
"""Above this shape the variance of the weights is infinite. No standard error is told unless k̂ is below it by
so many of its own standard errors: of the runs that look good nearer to it, too many are those that missed
the tail."""

MISSING_SHARE = 0.5
"""Of the missing tail, what enters the standard error, so that a 95% interval reaches as far as what may be
missing. With this number and the two before it, such intervals cover 90–97% for Gaussians too narrow and too
wide (``benchmarks/evidence_coverage.py``)."""

SMALLEST_ESS = 25
"""Effective draws behind an evidence: the logarithm of a mean of 25 is biased by 1 / (2 · 25) = 0.02."""


def khat_threshold(draws: int) -> float:
    """The k̂ above which S draws are too few to believe the weights: min(1 − 1/log10 S, 0.7).

    >>> khat_threshold(10_000)
    0.7
    """
    return float(min(1 - 1 / np.log10(draws), 0.7))


def tail_size(draws: int) -> int:
    """How many of S weights are the tail that a Pareto is fitted to.

    >>> tail_size(1000)
    94
    """
    return int(3 * np.sqrt(draws)) if draws > 225 else draws // 5


def effective_draws(log_weight: Array) -> Array:
    """How many independent draws each row of log weights (observations, draws) is worth: (Σw)² / Σw².

    >>> effective_draws(np.zeros((1, 100))).round()
    array([100.])
    """
    with np.errstate(invalid="ignore"):  # rows of zero weights are worth nothing
        effective = np.exp(2 * logsumexp(log_weight, axis=1) - logsumexp(2 * log_weight, axis=1))
    known: Array = np.nan_to_num(effective, nan=0.0)
    return known


def pareto_khat(log_weight: Array) -> Array:
    """k̂ for each row of log weights, of shape (observations, draws).

    >>> pareto_khat(np.zeros((1, 100)))
    array([-inf])
    """
    return pareto_smooth(log_weight)[1]


def pareto_smooth(log_weight: Array) -> tuple[Array, Array]:
    """Normalized log weights with the largest ones smoothed, and k̂, for each row (observations, draws).

    What a Pareto fit cannot answer is answered here. −inf, no alarm: the tail's weights are equal up to 0.05
    nats, or tied with the largest drawn ten times. +inf, the evidence cannot be judged: a weight is not a
    number, one draw carries more than half of the sum, the tail reaches down to weights of zero, or it is
    tied with its largest hardly seen.
    """
    draws = log_weight.shape[1]
    tail = tail_size(draws)
    top = np.argpartition(log_weight, draws - tail - 1, axis=1)[:, draws - tail - 1 :]
    top = np.take_along_axis(top, np.argsort(np.take_along_axis(log_weight, top, axis=1), axis=1), axis=1)
    ordered = np.take_along_axis(log_weight, top, axis=1)  # the tail, and before it what it is above
    cutoff, largest = ordered[:, 0], ordered[:, -1]
    with np.errstate(all="ignore"):  # what is not finite or tied ends as k̂ = inf, not as a warning
        smooth = log_weight - logsumexp(log_weight, axis=1, keepdims=True)
        heaviest = np.exp(smooth.max(axis=1))
        usable = np.isfinite(cutoff) & np.isfinite(largest) & ~np.isnan(log_weight).any(axis=1)
        flat = usable & (largest - cutoff < FLAT)
        excess = np.exp(ordered[:, 1:] - largest[:, None]) - np.exp(cutoff - largest)[:, None]
        steps = (np.diff(ordered, axis=1) > ROUNDING) & (excess > 0)
        tied = usable & ~flat & (steps.sum(axis=1) < TIED_SHARE * tail)
        seen = (log_weight > largest[:, None] - ROUNDING).sum(axis=1)
        khat = np.full(len(log_weight), np.inf)
        khat[flat | (tied & (seen >= SEEN_AGAIN))] = -np.inf
        fit = np.flatnonzero(usable & ~flat & ~tied)
        if len(fit):
            khat[fit], scale = fit_tails(excess[fit])
            below = np.exp(cutoff - largest)[fit, None]
            smoothed = np.log(tail_quantiles(khat[fit], scale, tail) + below).clip(max=0) + largest[fit, None]
            known = np.isfinite(smoothed).all(axis=1) & (scale > 0)
            fit, smoothed = fit[known], smoothed[known]
            changed = log_weight[fit]
            np.put_along_axis(changed, top[fit, 1:], smoothed, axis=1)
            smooth[fit] = changed - logsumexp(changed, axis=1, keepdims=True)
    khat[np.isnan(khat) | (heaviest > 0.5)] = np.inf  # NaN would count as good: it is not above any threshold
    return smooth, khat


def evidence_error(log_weight: Array, khat: Array) -> Array:
    r"""Standard error of the log of the mean weight, for each row (observations, draws); +inf if unknown.

    .. math::
        \sqrt{\frac{S \sum \bar w^2 - 1}{S - 1} + (m / 2)^2}

    for normalized weights :math:`\bar w`. The first term is the delta method; alone it is too small where
    the largest weights have not been drawn. The second is what the tail lacks, m: its mean excess would be
    σ / (1 − k) if its shape were k̂ plus 1.25 standard errors (1 + k̂) / √M of a fit to M weights, with σ from
    the median excess, which hardly depends on weights that were not drawn.

    No number is honest, and it is +inf, where k̂ exceeds its threshold, where it is not below 0.5 by 2.5
    standard errors of the fit, or where fewer than 25 draws are effective.
    """
    draws, tail = log_weight.shape[1], tail_size(log_weight.shape[1])
    effective = effective_draws(log_weight)
    of_the_fit = (1 + np.maximum(khat, 0)) / np.sqrt(tail)
    shape = khat + SHAPE_ERRORS * of_the_fit
    sure = khat + TELLING_ERRORS * of_the_fit <= LARGEST_SHAPE
    told = (khat <= khat_threshold(draws)) & sure & (effective >= SMALLEST_ESS)
    error = np.full(len(log_weight), np.inf)
    if not told.any():
        return error
    chosen = log_weight[told]
    weights = np.sort(np.exp(chosen - logsumexp(chosen, axis=1, keepdims=True)), axis=1)
    excess = weights[:, draws - tail :] - weights[:, draws - tail - 1, None]
    missing = tail * (_mean_excess(np.median(excess, axis=1), shape[told]) - excess.mean(axis=1))
    spread = np.maximum(draws / effective[told] - 1, 0) / (draws - 1)
    error[told] = np.sqrt(spread + (MISSING_SHARE * np.maximum(missing, 0)) ** 2)
    return error


def _mean_excess(median: Array, shape: Array) -> Array:
    """Of a Pareto of this shape k and median excess: σ / (1 − k), with σ = median · k / (2ᵏ − 1)."""
    finite = np.where(np.isfinite(shape), shape, 0.0)
    near = np.where(np.abs(finite) < 1e-6, 1e-6, finite)
    mean: Array = median * near / np.expm1(near * np.log(2)) / (1 - near)
    return np.where(np.isfinite(shape), mean, 0.0)  # k̂ = −inf: nothing is missing
