"""Where a guide loses: in its family, or in its encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_vae.arguments import require_count
from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.refining.steps import Normals
from pyro_vae.naming import named
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import prepare_joint
from pyro_vae.posterior.evaluation.sites import SharedLatentError
from pyro_vae.posterior.importance import FEWEST_ADVICE, FEWEST_DRAWS, diagnose_pair
from pyro_vae.posterior.local import ROUNDS, NormalSite, fit_local, local_sites
from pyro_vae.posterior.pareto import evidence_error, khat_threshold, pareto_khat
from pyro_vae.posterior.repair.climbing import Ladder
from pyro_vae.posterior.repair.judging import LARGEST_KHAT
from pyro_vae.posterior.repair.ladder import ready, together_ladder
from pyro_vae.posterior.repair.reached import Rows
from pyro_vae.posterior.repair.together import Together
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior
from pyro_vae.progress import progress_bar

Array = NDArray[np.float64]

STEPS_PER_NEWTON = 6
"""Steps of stochastic gradients that are worth one natural-gradient step."""

PROMISED = 0.01
"""Nats that another natural-gradient step promises where q* counts as found."""


@torch.inference_mode(mode=False)
def inference_gaps(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    steps: int = 400,
    particles: int = 16,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.Dataset:
    r"""Split the gap between log evidence and ELBO into approximation and amortization.

    .. math::
        \log p(x) - \mathrm{ELBO}(q) =
        \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation}} +
        \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortization}}

    where q* is the best member of the guide's family for this observation alone (Cremer, Li and Duvenaud,
    2018, "Inference suboptimality in variational autoencoders"). A large approximation gap asks for a richer
    family, a large amortization gap for a better encoder or more data.

    The evidence is that of :func:`~pyro_vae.posterior.repair.ladder.repair` by its steps without chains, so
    it knows modes that the guide's draws never visit. q* is found by natural-gradient steps where the guide's
    Normals are all diagonal, or one full one, in free coordinates (see :func:`pyro_vae.refine`); by
    stochastic gradients otherwise. Draws of q* tell the evidence where they tell the same more precisely.
    Where the evidence cannot be believed the approximation gap is NaN, and where q* has not converged all
    gaps are.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk
        As in :func:`~pyro_vae.posterior.importance.diagnose`.
    steps, particles
        Of the optimization of q*, one for each observation, started at the guide's output: by natural
        gradients a sixth as many steps at most, and no particles.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xr.Dataset
        Over ``observation``, in nats: ``log_evidence`` and ``log_evidence_se``, ``elbo``, ``elbo_local``,
        ``approximation_gap``, ``amortization_gap``; ``khat`` and ``khat_local``; ``converged``, whether q* is
        the best there is, and ``believable``, whether the evidence is. The gaps of single observations can
        be negative by their Monte Carlo error. Where observations share latents there is one posterior, and
        no dimension ``observation``: numbers are of all data. Attributes ``draws``, ``seed``, ``steps``,
        ``latent_dim`` and ``khat_threshold``.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.diagnose`, and if the guide's latents are not Normal
        underneath or depend on each other.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2 + 1, 0.5**0.5))  # one unit beside the posterior
    >>> gaps = inference_gaps(model, guide, torch.tensor([0.0, 1.0]), steps=200)
    >>> gaps["approximation_gap"].round(1).values, gaps["amortization_gap"].round(1).values
    (array([0., 0.]), array([1.1, 1. ]))
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk, least=FEWEST_DRAWS, advice=FEWEST_ADVICE)
    require_count("steps", steps, ROUNDS)
    require_count("particles", particles, 1)
    together = None
    try:
        pair = ready(model, guide, data)
    except SharedLatentError:
        together = Together.of(prepare_joint(model, guide, data), draws, seed)
        pair = together.one
    programs = (pair.model, pair.guide) if together is None else (together.pair.model, together.pair.guide)
    for module in modules_of(*programs):
        module.requires_grad_(False)  # copies; only local parameters move
    if together is None:
        sites, ladder = local_sites(pair), Ladder(pair, draws, seed, chunk, chains=2, warmup=1)
        ladder.judge_guide()
    else:
        sites, ladder = {}, together_ladder(together, draws, seed, chunk, chains=2, warmup=1)
    n = pair.observations
    khat, elbo = ladder.khat["guide"], ladder.log_weight.mean(axis=1)
    columns = {name: np.empty(n) for name in ("elbo", "khat", "log_evidence", "error", "converged")}
    here = making_tensors_on(torch.device("cpu"))  # whatever the user's default is; the model has its own
    with here, progress_bar(n, "local posteriors", enabled=progress) as show:
        for group in ladder.groups():
            posterior, free = given = ladder.posterior(group)
            near = None
            with posterior.evaluation():
                start = (
                    _normals_of_the_guide(sites, posterior, group) if together is None else _of_all(together)
                )
                if start is not None:
                    near, found = _by_natural_gradients(posterior, start, free, steps)
            if near is None:
                found = _by_stochastic_gradients(pair, group, draws, seed, steps, particles, chunk)
            for name, values_of_group in zip(columns, found, strict=True):
                columns[name][group] = values_of_group
            for _ in ladder.climb(group, ("resample", "local"), given, near):
                pass
            show(int(group[-1]) + 1, "")
    converged, local = columns["converged"] > 0, columns["elbo"]
    both = np.hypot(ladder.log_evidence_se, columns["error"])
    agree = abs(columns["log_evidence"] - ladder.log_evidence) <= 4 * both
    finer = agree & (columns["khat"] <= LARGEST_KHAT) & (columns["error"] < ladder.log_evidence_se)
    evidence = np.where(finer, columns["log_evidence"], ladder.log_evidence)
    numbers = {
        "log_evidence": evidence,
        "log_evidence_se": np.where(finer, columns["error"], ladder.log_evidence_se),
        "elbo": elbo,
        "elbo_local": local,
        "approximation_gap": np.where(converged & ladder.believable, evidence - local, np.nan),
        "amortization_gap": np.where(converged, local - elbo, np.nan),
        "khat": khat,
        "khat_local": columns["khat"],
        "converged": converged,
        "believable": ladder.believable,
    }
    gaps = xr.Dataset(
        {name: ("observation", values) for name, values in numbers.items()},
        {"observation": np.arange(n)},
        {
            "draws": draws,
            "seed": seed,
            "steps": steps,
            "latent_dim": ladder.latent_dim,
            "khat_threshold": khat_threshold(draws),
        },
    )
    return named(gaps if together is None else gaps.isel(observation=0, drop=True))


def _of_all(together: Together) -> Normals:
    """The guide's Normal of everything."""
    normals = together.normals()
    if normals is None:
        raise ValueError(
            "the guide draws latents that all observations share neither from independent Normals nor from "
            "one Normal, so its best member cannot be found; give such a guide, or ask repair for draws"
        )
    return normals


def _normals_of_the_guide(
    sites: dict[str, NormalSite], posterior: UnconstrainedPosterior, rows: Rows
) -> Normals | None:
    """What the guide draws its free coordinates from, if that is Normals: standard deviations, or the factor
    of a single site with full covariance."""
    if sites.keys() != posterior.sizes.keys():
        return None
    chosen = torch.from_numpy(rows)
    ordered = [sites[name] for name in posterior.sizes]
    if any(site.full for site in ordered) and (len(ordered) > 1 or ordered[0].loc.dim() != 2):
        return None
    at = {name: sites[name].transformed().cpu()[chosen][None] for name in posterior.sizes}
    loc = torch.cat([site.loc[chosen].reshape(len(rows), -1).double() for site in ordered], dim=1).cpu()
    if loc.shape[1] != posterior.size:
        return None
    if not torch.allclose(posterior.coordinates(at)[0], loc, rtol=1e-4, atol=1e-4):
        return None  # Normals of other coordinates, such as those behind a flow
    if ordered[0].full:
        return Normals(loc, ordered[0].scale[chosen].double().cpu())
    return Normals(
        loc, torch.cat([site.scale[chosen].reshape(len(rows), -1).double() for site in ordered], dim=1).cpu()
    )


def _by_natural_gradients(
    posterior: UnconstrainedPosterior, start: Normals, free: Tensor, steps: int
) -> tuple[Normals, tuple[Array, ...]]:
    """q*, and of it the ELBO, k̂ of its draws and the evidence by them with its error, and whether it has
    converged. Its draws have the guide's noise."""
    found = posterior.refined(*start, steps=max(1, steps // STEPS_PER_NEWTON), stop=PROMISED)
    apart, (loc, factor) = free - start.loc, found.normals
    if start.factor.dim() == 2:
        white = apart / start.factor
        draws = loc + factor * white
    else:
        tril = torch.linalg.cholesky(start.factor @ start.factor.mT)
        white = torch.linalg.solve_triangular(tril, apart.permute(1, 2, 0), upper=False).permute(2, 0, 1)
        draws = loc + torch.einsum("nij,snj->sni", factor, white)
    constant = apart.shape[-1] / 2 * math.log(2 * math.pi) + found.normals.log_det
    log_weight = (posterior.log_density(draws) + white.square().sum(-1) / 2 + constant).numpy().T
    khat, evidence = pareto_khat(log_weight), logsumexp(log_weight, axis=1) - np.log(len(free))
    error = evidence_error(log_weight, khat)
    return found.normals, (log_weight.mean(axis=1), khat, evidence, error, found.converged.numpy())


def _by_stochastic_gradients(
    pair: Pair, rows: Rows, draws: int, seed: int, steps: int, particles: int, chunk: int
) -> tuple[Array, ...]:
    """The same, of any family of Normals and what is made of them."""
    parts = []
    size = len(rows) if pair.whole else max(1, chunk // particles)
    for start in range(0, len(rows), size):
        few = rows[start : start + size]
        part = (
            pair if pair.whole else replace(pair, args=tuple(arg[torch.from_numpy(few)] for arg in pair.args))
        )
        local, converged = fit_local(part, steps=steps, particles=particles, seed=seed + int(few[0]))
        report = diagnose_pair(local, draws, seed, chunk)
        told = (report[name].values for name in ("elbo", "khat", "log_evidence", "log_evidence_se"))
        found = (*told, converged.numpy())
        parts.append(tuple(column[few] for column in found) if pair.whole else found)
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
