"""Importance weights of a guide, and what they say: log evidence, ELBO, k̂ and ESS of each observation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp

from pyro_vae.batches.batches import epoch_seed
from pyro_vae.batches.streams import is_stream, stream
from pyro_vae.guides.refining.density import CHUNK as ROWS
from pyro_vae.naming import NAMES, attributes, named
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.evaluation.block import Block
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import prepare, prepare_joint
from pyro_vae.posterior.evaluation.sites import SharedLatentError
from pyro_vae.posterior.joint import diagnose_joint, joint_log_weights
from pyro_vae.posterior.pareto import effective_draws, evidence_error, khat_threshold, pareto_khat
from pyro_vae.posterior.refined.dispersion import elsewhere_attrs
from pyro_vae.posterior.refined.evidence import evidence_columns
from pyro_vae.posterior.refined.rows import refine_rows
from pyro_vae.progress import progress_bar

Array = NDArray[np.float64]

FEWEST_DRAWS = 30
"""Below this no Pareto tail can be fitted."""
FEWEST_ADVICE = " for a Pareto tail, and 1000 is a good number"

DISPERSED = 32
"""Observations that refinement starts from elsewhere, too."""


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
        A Pyro pair, called as ``model(*data)`` and ``guide(*data)``. Latents of an observation lie in a plate
        over them at dim −1. Modules run as copies in evaluation mode and float64; plain functions run as
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
        these are densities, and plates that draw a subsample of their own go over all of the data. Where
        latents are shared by all observations (a regression weight), there is one weight for each joint draw
        of everything, of dimension (draw,); the draws then run one after another.

    Raises
    ------
    ValueError
        If a latent is missing in one of the two programs, or if the pair does not run on the data.

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
    try:
        pair = prepare(model, guide, data)
    except SharedLatentError:
        return joint_log_weights(prepare_joint(model, guide, data), draws, seed, progress=progress)
    values = np.empty((pair.observations, draws))
    for block in pair.blocks(draws, seed, chunk, progress=progress):
        values[block.observations, block.draws] = block.log_weight.numpy().T
    coords = {"observation": np.arange(pair.observations), "draw": np.arange(draws)}
    attrs = {"seed": seed} | attributes(*NAMES["log_weight"])
    return xr.DataArray(values, coords, ("observation", "draw"), "log_weight", attrs)


@torch.inference_mode(mode=False)
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    refined: bool = False,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.Dataset:
    r"""How well a guide approximates the posterior of each observation, from S importance draws.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk, progress
        As in :func:`log_weights`; data may also be a ``Dataset`` or a ``DataLoader``, which is read in order,
        batch by batch.
    refined
        Whether to refine the guide's Normal of each observation first (:func:`pyro_vae.refine`), and to draw
        around it from a Student-t with wide tails, with rounds of two to four times as many draws for those
        observations that need them. The evidence is then that of the model alone, whatever the guide.

    Returns
    -------
    xr.Dataset
        Over ``observation``, densities in nats (of the joint posterior of all data, without this dimension,
        where latents are shared by the observations):

        - ``elbo``: mean log weight, and equal to ``reconstruction`` − ``kl``, both estimated from the same
          draws: E_q log p(x|z) and E_q [log q(z|x) − log p(z)];
        - ``log_evidence``: log of the mean weight, unsmoothed, because Pareto smoothing truncates and so
          biases it low;
        - ``log_evidence_se``: its standard error, by the delta method and with what the tail of the weights
          may lack: 95% intervals cover 90–97% where it is finite. +inf where no honest number exists: k̂ above
          the threshold or too near it for so few draws, or fewer than 25 effective draws;
        - ``khat``: the Pareto shape of the largest weights (Vehtari, Simpson, Gelman, Yao and Gabry, 2024,
          "Pareto smoothed importance sampling"). −inf, no alarm, where the largest weights are equal up to
          0.05 nats (an exact guide) or tied and drawn often; +inf, an alarm, where the weights cannot be
          judged: one is not a number, one carries more than half of the sum, too few are finite or different;
        - ``ess``: effective number of importance draws, 1 / Σw̄² for normalized weights w̄. Believe the
          evidence where k̂ is at most the threshold *and* 25 draws are effective.

        With ``refined`` the ELBO, KL and reconstruction are those of the refined Normals, k̂, ESS and evidence
        those of the last round; and there are ``rounds``, how many that was, ``elbo_guide``, the ELBO of the
        guide's own Normal (by the cubature rule), and ``converged``. The attributes ``dispersed``,
        ``elsewhere_share`` and ``elsewhere_nats`` say what came of starting 32 observations from elsewhere,
        too (:func:`pyro_vae.refine`): k̂ does not see a mode that no draw has met.

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
    of_pair, dtypes = (diagnose_refined, (None,)) if refined else (diagnose_pair, (torch.float64, None))
    if not is_stream(data):
        try:
            pair = prepare(model, guide, data, dtypes=dtypes)
        except SharedLatentError:
            if refined:
                raise
            return diagnose_joint(prepare_joint(model, guide, data), draws, seed, progress=progress)
        return of_pair(pair, draws, seed, chunk, progress=progress)
    parts = [
        of_pair(
            prepare(model, guide, batch, dtypes=dtypes), draws, epoch_seed(seed, i), chunk, progress=progress
        )
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
    return named(xr.Dataset(columns, {"observation": np.arange(pair.observations)}, attrs))


def diagnose_refined(
    pair: Pair, draws: int, seed: int, chunk: int = CHUNK, *, progress: bool = False
) -> xr.Dataset:
    """:func:`diagnose` of refined Normals, for a pair that is ready in its own dtype."""
    parts, elsewhere, latent_dim = [], [], 0
    threads = pair.threads(min(chunk, draws * pair.observations))
    with threads, progress_bar(pair.observations, "refined evidence", enabled=progress) as show:
        for rows in refine_rows(pair, seed=seed, chunk=min(chunk, ROWS), dispersed=DISPERSED):
            parts.append(evidence_columns(pair, rows, draws, seed))
            elsewhere.append(rows.elsewhere)
            latent_dim = rows.latent_dim
            show(rows.observations.stop, "")
    columns = {name: ("observation", np.concatenate([part[name] for part in parts])) for name in parts[0]}
    attrs = {"draws": draws, "seed": seed, "latent_dim": latent_dim, "khat_threshold": khat_threshold(draws)}
    attrs |= {"refined": 1} | elsewhere_attrs(elsewhere)
    return named(xr.Dataset(columns, {"observation": np.arange(pair.observations)}, attrs))


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
    elbo, mean_kl, khat = weights.mean(axis=1), kl.mean(axis=1), pareto_khat(weights)
    return {
        "elbo": elbo,
        "log_evidence": logsumexp(weights, axis=1) - np.log(weights.shape[1]),
        "log_evidence_se": evidence_error(weights, khat),
        "khat": khat,
        "ess": effective_draws(weights),
        "kl": mean_kl,
        "reconstruction": elbo + mean_kl,
    }
