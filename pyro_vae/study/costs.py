"""Say what a study would cost before anything is fitted: a mistyped number is not found out by waiting."""

import itertools
from collections.abc import Sequence

MOST_SEEDS = 1_000
MOST_DRAWS = 1_000_000
MOST_WEIGHTS = 500_000_000

BYTES_PER_WEIGHT = 16
"""In float32: itself, its gradient and Adam's two moments."""


def check_counts(seeds: int, guides: int, draws: int) -> None:
    """Refuse numbers of seeds and draws that nobody can wait for. Raises ValueError by the name of the
    number, with what it would cost.

    Examples
    --------
    >>> check_counts(3, 2, 10**9)
    Traceback (most recent call last):
        ...
    ValueError: draws is 1000000000; give at most 1,000,000: every held-out observation would be decoded
    1,000,000,000 times for each of 6 fits, and its weights alone take 8.0 GB
    """
    if seeds > MOST_SEEDS:
        raise ValueError(
            f"seeds is {seeds}; give at most {MOST_SEEDS:,}: with {guides} guides that is "
            f"{seeds * guides:,} fits"
        )
    if draws > MOST_DRAWS:
        raise ValueError(
            f"draws is {draws}; give at most {MOST_DRAWS:,}: every held-out observation would be decoded "
            f"{draws:,} times for each of {seeds * guides:,} fits, and its weights alone take "
            f"{_told(8 * draws)}"
        )


def check_weights(
    hidden: Sequence[int], latent_dim: int, features: int | None = None, outputs: int = 1
) -> None:
    """Refuse networks that do not fit into a memory. Raises ValueError with the number of weights, and the
    bytes that they take.

    Parameters
    ----------
    hidden, latent_dim
        As in :class:`~pyro_vae.study.config.StudyConfig`.
    features, outputs
        Of an observation, if they are known yet, and parameters of the likelihood for each.

    Examples
    --------
    >>> check_weights((10**6, 10**6), 8)
    Traceback (most recent call last):
        ...
    ValueError: hidden is (1000000, 1000000) and latent_dim is 8; give smaller ones: the two networks
    have 2,000,026,000,000 weights, 32.0 TB with their gradients and Adam's moments
    """
    first, last = features or 1, (features or 1) * outputs
    encoder, decoder = [first, *hidden, 2 * latent_dim], [latent_dim, *hidden[::-1], last]
    weights = sum(a * b for sizes in (encoder, decoder) for a, b in itertools.pairwise(sizes))
    if weights > MOST_WEIGHTS:
        for_these = "" if features is None else f"for {features} features "
        memory = _told(BYTES_PER_WEIGHT * weights)
        raise ValueError(
            f"hidden is {tuple(hidden)} and latent_dim is {latent_dim}; give smaller ones: {for_these}the "
            f"two networks have {weights:,} weights, {memory} with their gradients "
            "and Adam's moments"
        )


def _told(number: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    for unit in units:
        if number < 1000 or unit == units[-1]:
            break
        number /= 1000
    return f"{number:,.1f} {unit}"
