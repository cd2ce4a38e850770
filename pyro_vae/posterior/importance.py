"""Importance weights of a guide, and what they say: log evidence, ELBO, k̂ and ESS of each observation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp

from pyro_vae.batches.batches import epoch_seed
from pyro_vae.batches.streams import is_stream, stream
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.drawing import CHUNK, Block, Pair
from pyro_vae.posterior.preparation import prepare

__all__ = ["diagnose", "khat_threshold", "log_weights", "pareto_khat"]

Array = NDArray[np.float64]

FEWEST_DRAWS = 30
"""Below this no Pareto tail can be fitted."""
FEWEST_ADVICE = " for a Pareto tail, and 1000 is a good number"

EQUAL = 1e-4
"""Nats. Log weights of a tail that lie closer together are equal: in float32 this is their rounding error."""


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.DataArray:
    """Log importance weights log p(x, z) − log q(z|x) of draws z from the guide.

    Parameters
    ----------
    model, guide
        A Pyro pair, called as ``model(*data)`` and ``guide(*data)``, whose latents lie in one plate over the
        observations at dim −1. Modules run as copies in evaluation mode and float64; plain functions run as
        they are.
    data
        A tensor, an array, or a tuple of them for programs of several arguments.
    draws
        Draws per observation, S.
    seed
        The same seed gives two guides the same noise, so their weights can be compared draw by draw.
    chunk
        How many rows, an observation and a draw each, go through the networks at once: it bounds the memory.
        Another chunk gives other noise, and so the same numbers up to Monte Carlo error.

    Returns
    -------
    xr.DataArray
        In nats, of dimensions (observation, draw), float64. Subsampling and annealing scales are left out:
        these are densities.

    Raises
    ------
    ValueError
        If a latent lies outside the plate or is missing in one of the two programs, or if the pair does not
        run on the data.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> weights = log_weights(model, guide, torch.tensor([0.0, 2.0]), draws=50)
    >>> dict(weights.sizes)
    {'observation': 2, 'draw': 50}
    >>> weights.std("draw").round(3).values  # the guide is exact
    array([0., 0.])
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk)
    pair = prepare(model, guide, data)
    values = np.empty((pair.observations, draws))
    for block in pair.blocks(draws, seed, chunk, progress=progress):
        values[block.observations, block.draws] = block.log_weight.numpy().T
    coords = {"observation": np.arange(pair.observations), "draw": np.arange(draws)}
    return xr.DataArray(
        values, coords, ("observation", "draw"), "log_weight", {"seed": seed, "units": "nats"}
    )


def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.Dataset:
    r"""How well a guide approximates the posterior of each observation, from S importance draws.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk, progress
        As in :func:`log_weights`; data may also be a ``Dataset`` or a ``DataLoader``, which is read in order,
        batch by batch.

    Returns
    -------
    xr.Dataset
        Over ``observation``, densities in nats:

        - ``elbo``: mean log weight, and equal to ``reconstruction`` − ``kl``, both estimated from the same
          draws: E_q log p(x|z) and E_q [log q(z|x) − log p(z)];
        - ``log_evidence``: log of the mean weight, unsmoothed, because Pareto smoothing truncates and so
          biases it low;
        - ``log_evidence_se``: its standard error by the delta method, √((S Σw̄² − 1) / (S − 1)) for
          normalized weights w̄. It is itself unreliable where k̂ is above the threshold;
        - ``khat``: the Pareto shape of the largest weights (Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
          "Pareto smoothed importance sampling"). −inf where all weights are equal (an exact guide), +inf
          where a weight is not a number or too few are finite;
        - ``ess``: effective number of importance draws, 1 / Σw̄².

        Attributes: ``draws`` (S), ``seed``, ``latent_dim``, and ``khat_threshold``, min(1 − 1/log10 S, 0.7).
        k̂ is biased upward as the latent dimension grows, so compare it between guides of one dimension.

    Raises
    ------
    ValueError
        As :func:`log_weights`, and if there are fewer than 30 draws.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 1.0))  # too wide
    >>> report = diagnose(model, guide, torch.tensor([0.0]))
    >>> exact = torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(0.0)).item()
    >>> bool(abs(report.log_evidence[0] - exact) < 0.05), bool(report.elbo[0] < exact)
    (True, True)
    >>> round(report.khat_threshold, 3)
    0.667
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk, least=FEWEST_DRAWS, advice=FEWEST_ADVICE)
    if not is_stream(data):
        return diagnose_pair(prepare(model, guide, data), draws, seed, chunk, progress=progress)
    parts = [
        diagnose_pair(prepare(model, guide, batch), draws, epoch_seed(seed, i), chunk, progress=progress)
        for i, batch in enumerate(stream(data))
    ]
    whole = xr.concat(parts, "observation", combine_attrs="override")
    return whole.assign_coords(observation=np.arange(whole.sizes["observation"])).assign_attrs(seed=seed)


def diagnose_pair(
    pair: Pair, draws: int, seed: int, chunk: int = CHUNK, *, progress: bool = False
) -> xr.Dataset:
    """:func:`diagnose` for a pair that is ready."""
    parts, latent_dim = [], 0
    for block, weights, kl in _complete(pair, draws, seed, chunk, progress):
        parts.append(_summary(weights, kl))
        latent_dim = block.latent_dim
    names = ("elbo", "log_evidence", "log_evidence_se", "khat", "ess", "kl", "reconstruction")
    columns = {name: ("observation", np.concatenate([part[name] for part in parts])) for name in names}
    attrs = {"draws": draws, "seed": seed, "latent_dim": latent_dim, "khat_threshold": khat_threshold(draws)}
    return xr.Dataset(columns, {"observation": np.arange(pair.observations)}, attrs)


def khat_threshold(draws: int) -> float:
    """The k̂ above which S draws are too few to believe the weights: min(1 − 1/log10 S, 0.7).

    >>> khat_threshold(10_000)
    0.7
    """
    return float(min(1 - 1 / np.log10(draws), 0.7))


def pareto_khat(log_weight: Array) -> Array:
    """k̂ for each row of log weights, of shape (observations, draws).

    >>> pareto_khat(np.zeros((1, 100)))
    array([-inf])
    """
    return pareto_smooth(log_weight)[1]


def pareto_smooth(log_weight: Array) -> tuple[Array, Array]:
    """Normalized log weights with the largest ones smoothed, and k̂, for each row (observations, draws).

    The cases that a Pareto fit cannot answer are answered here: equal weights are −inf (nothing to fit, the
    guide is exact), weights that are not numbers are +inf, and so is a tail that reaches down to weights of
    zero.
    """
    from arviz_stats import base

    array_stats: Any = base.array_stats  # type: ignore[attr-defined]
    n, draws = log_weight.shape
    tail = int(3 * np.sqrt(draws)) if draws > 225 else draws // 5
    ordered = np.sort(log_weight, axis=1)
    cutoff, largest = ordered[:, draws - tail - 1], ordered[:, -1]
    usable = np.isfinite(cutoff) & np.isfinite(largest) & ~np.isnan(log_weight).any(axis=1)
    flat = np.zeros(n, dtype=bool)
    flat[usable] = largest[usable] - cutoff[usable] < EQUAL
    khat = np.full(n, np.inf)
    khat[flat] = -np.inf
    fit = usable & ~flat
    with np.errstate(all="ignore"):  # what is not finite or tied ends as k̂ = inf, not as a warning
        normalized = log_weight - logsumexp(log_weight, axis=1, keepdims=True)
        smooth = normalized.copy()
        if fit.any():
            # psislw wants log likelihoods, the negative of log weights: without the sign narrow guides look
            # perfect
            smooth[fit], khat[fit] = array_stats.psislw(-log_weight[fit], axis=-1)
    broken = np.isnan(smooth).any(axis=1)  # a tail of ties has no Pareto fit
    smooth[broken] = normalized[broken]
    khat[np.isnan(khat)] = np.inf  # NaN would count as good: it is not above any threshold
    return smooth, khat


def _complete(
    pair: Pair, draws: int, seed: int, chunk: int, progress: bool
) -> Iterator[tuple[Block, Array, Array]]:
    """All draws of some observations together: log weights and log q − log p(z), (observations, draws)."""
    weights, kl = [], []
    for block in pair.blocks(draws, seed, chunk, progress=progress):
        weights.append(block.log_weight.numpy().T)
        kl.append((block.log_guide - block.log_prior).numpy().T)
        if block.draws.stop == draws:
            yield block, np.concatenate(weights, axis=1), np.concatenate(kl, axis=1)
            weights, kl = [], []


def _summary(weights: Array, kl: Array) -> dict[str, Array]:
    draws = weights.shape[1]
    total = logsumexp(weights, axis=1)
    squares = np.exp(logsumexp(2 * weights, axis=1) - 2 * total)
    elbo, mean_kl = weights.mean(axis=1), kl.mean(axis=1)
    return {
        "elbo": elbo,
        "log_evidence": total - np.log(draws),
        "log_evidence_se": np.sqrt(np.maximum(draws * squares - 1, 0) / (draws - 1)),
        "khat": pareto_khat(weights),
        "ess": 1 / squares,
        "kl": mean_kl,
        "reconstruction": elbo + mean_kl,
    }
