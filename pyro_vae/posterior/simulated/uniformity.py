"""Test whether numbers are uniform, by simultaneous bands of their distribution function."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

Array = NDArray[np.float64]

SIMULATIONS = 1000
LARGEST = 2000
"""Numbers for which the null is simulated at most; with more it hardly changes."""

FEW = 150
"""Numbers of which each is looked at."""

NEAR, FAR = 0.1, 0.01
"""Tail probabilities between which the null is extended to smaller ones, as a power of the level."""


def uniform_p(numbers: Array) -> float:
    """p-value of uniformity on (0, 1), that sees the ends as well as the middle.

    Each order statistic has a Beta distribution; the smallest of their two-sided probabilities is the
    pointwise level at which a simultaneous band of the distribution function just touches it (Säilynoja,
    Bürkner and Vehtari, 2022, "Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison"). Its own distribution is simulated.

    >>> even = (np.arange(100) + 0.5) / 100
    >>> round(uniform_p(even), 1), uniform_p(even**2) < 0.01
    (1.0, True)
    """
    level, null = _level(np.sort(numbers)[None])[0], _null(min(len(numbers), LARGEST))
    near, far = np.quantile(null, (NEAR, FAR))
    if level >= near:
        return float((1 + (null <= level).sum()) / (SIMULATIONS + 1))
    power = np.log(NEAR / FAR) / np.log(near / far)
    with np.errstate(divide="ignore"):  # a level of zero has p-value zero
        return float(NEAR * np.exp(power * np.log(level / near)))


def _level(ordered: Array) -> Array:
    """The pointwise level of each row of sorted numbers."""
    n = ordered.shape[1]
    rank = _looked_at(n)
    numbers = ordered[:, rank - 1]
    below = betainc(rank, n + 1 - rank, numbers)
    above = betainc(n + 1 - rank, rank, 1 - numbers)
    level: Array = 2 * np.minimum(below, above).min(axis=1)
    return level


def _looked_at(n: int) -> NDArray[np.int64]:
    """All order statistics, or of many some sixty evenly and more and more of them towards the ends."""
    if n <= FEW:
        return np.arange(1, n + 1)
    near = np.geomspace(1, n / 2, 40)
    return np.unique(np.concatenate([near, n + 1 - near, np.linspace(1, n, 60)]).round().astype(np.int64))


@lru_cache(maxsize=16)
def _null(n: int) -> Array:
    return _level(np.sort(np.random.default_rng(0).random((SIMULATIONS, n)), axis=1))
