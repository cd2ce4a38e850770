"""Where a guide loses: in its family, or in its encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from pyro_vae.arguments import require_count
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.drawing import CHUNK, Pair
from pyro_vae.posterior.importance import FEWEST_ADVICE, FEWEST_DRAWS, diagnose_pair
from pyro_vae.posterior.local import ROUNDS, fit_local
from pyro_vae.posterior.preparation import prepare
from pyro_vae.progress import progress_bar

__all__ = ["inference_gaps"]


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
    family, a large amortization gap for a better encoder or longer training.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk
        As in :func:`~pyro_vae.posterior.importance.diagnose`.
    steps, particles
        Of the optimization of q*: one for each observation, started at the guide's output.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xr.Dataset
        Over ``observation``, in nats: ``log_evidence`` and ``log_evidence_se`` (from the draws of the guide
        or of q*, whichever have the smaller error), ``elbo``, ``elbo_local``, ``approximation_gap``,
        ``amortization_gap``; and ``khat`` and ``khat_local``. The gaps of single observations can be
        negative by their Monte Carlo error. Attributes as those of ``diagnose``, and ``steps``.

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
    pair = prepare(model, guide, data)
    n = pair.observations
    rows = n if pair.whole else max(1, chunk // particles)
    parts = []
    with progress_bar(n, "local posteriors", enabled=progress) as show:
        for start in range(0, n, rows):
            part = replace(pair, args=tuple(arg[start : start + rows] for arg in pair.args))
            parts.append(_gaps(part, draws, seed + start, steps, particles, chunk))
            show(min(start + rows, n), "")
    gaps = xr.concat(parts, "observation").assign_coords(observation=np.arange(n))
    gaps.attrs = parts[0].attrs | {"seed": seed, "steps": steps}
    return gaps


def _gaps(pair: Pair, draws: int, seed: int, steps: int, particles: int, chunk: int) -> xr.Dataset:
    guide = diagnose_pair(replace(pair, whole=True), draws, seed, chunk)  # the noise of the local ones
    local = diagnose_pair(fit_local(pair, steps=steps, particles=particles, seed=seed), draws, seed, chunk)
    better = local["log_evidence_se"] <= guide["log_evidence_se"]
    evidence = local["log_evidence"].where(better, guide["log_evidence"])
    return xr.Dataset(
        {
            "log_evidence": evidence,
            "log_evidence_se": local["log_evidence_se"].where(better, guide["log_evidence_se"]),
            "elbo": guide["elbo"],
            "elbo_local": local["elbo"],
            "approximation_gap": evidence - local["elbo"],
            "amortization_gap": local["elbo"] - guide["elbo"],
            "khat": guide["khat"],
            "khat_local": local["khat"],
        },
        attrs=guide.attrs,
    )
