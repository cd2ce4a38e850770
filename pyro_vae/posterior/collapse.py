"""Posterior collapse: which latent dimensions carry information about the observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.calibration import univariate
from pyro_vae.posterior.drawing import CHUNK, Pair, coordinate_names, sample_sites
from pyro_vae.posterior.preparation import prepare

__all__ = ["active_units"]

Array = NDArray[np.float64]

ACTIVE = 0.01
"""Activity above which a unit counts as active (Burda, Grosse and Salakhutdinov, 2016)."""


def active_units(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 100,
    seed: int = 0,
    *,
    chunk: int = CHUNK,
) -> xr.Dataset:
    r"""Activity and KL of each latent dimension.

    The activity of dimension u is :math:`A_u = \operatorname{Var}_x(\operatorname{E}_{q(z|x)}[z_u])`, and u
    is active if A_u > 0.01 (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders"). The
    noise of the means is taken off, so that a collapsed dimension has activity 0 in expectation for any
    number of draws.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk
        As in :func:`~pyro_vae.posterior.importance.log_weights`; few draws do.

    Returns
    -------
    xr.Dataset
        Over ``latent``: ``activity`` (squared units of the latent), ``active``, and ``kl``, the mean KL of
        the guide's marginal from the prior's in nats per observation. For factorized guides and priors the
        KL add up to that of :func:`~pyro_vae.posterior.importance.diagnose`; for several sites each is given
        the sites before it. NaN where the marginals have no closed form. Attribute ``active_units``: how
        many.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.log_weights`, and if there are fewer than 2 observations or
        draws.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
    >>> def guide(x):
    ...     loc = torch.stack([x / 2, torch.zeros_like(x)], -1)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0])).to_event(1))
    >>> units = active_units(model, guide, 1.4 * torch.randn(200))
    >>> units["active"].values, units["kl"].round(1).values
    (array([ True, False]), array([0.3, 0. ]))
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk, least=2)
    pair = prepare(model, guide, data)
    if pair.observations < 2:
        raise ValueError(
            f"data has {pair.observations} observations; activity is a variance over them, so give at least 2"
        )
    means, variances, kls, names = [], [], [], []
    step = pair.observations if pair.whole else max(1, chunk // draws)
    for start in range(0, pair.observations, step):
        with pair.evaluation(seed, start):
            values, kl = _statistics(pair, tuple(arg[start : start + step] for arg in pair.args), draws)
        names = [name for site, value in values.items() for name in coordinate_names(site, value.shape[2:])]
        flat = np.concatenate(
            [value.reshape(*value.shape[:2], -1).numpy() for value in values.values()], axis=2
        )
        means.append(flat.mean(0))
        variances.append(flat.var(0, ddof=1))
        kls.append(kl)
    mean, noise = np.concatenate(means), np.concatenate(variances) / draws
    activity = mean.var(0, ddof=1) - noise.mean(0)
    active = activity > ACTIVE
    columns = {"activity": activity, "active": active, "kl": np.concatenate(kls).mean(0)}
    return xr.Dataset(
        {name: ("latent", column) for name, column in columns.items()},
        {"latent": names},
        {"active_units": int(active.sum()), "draws": draws, "seed": seed},
    )


def _statistics(pair: Pair, args: tuple[Tensor, ...], draws: int) -> tuple[dict[str, Tensor], Array]:
    """Draws by site, (draws, rows, …), and the KL of each latent number, (rows, latents)."""
    rows = len(args[0])
    guide_trace, model_trace = pair.traces(args, draws)
    guide_sites = sample_sites(guide_trace)
    values, kls = {}, []
    for name, site in sample_sites(model_trace).items():
        if site["is_observed"]:
            continue
        value = values[name] = pair.value(site, draws, rows)
        kl = _marginal_kl(guide_sites[name]["fn"], site["fn"])
        if kl is None:
            kls.append(np.full((rows, value[0, 0].numel()), np.nan))
        else:
            lead: Tensor = pair.lead(site, kl.expand(site["value"].shape), draws, rows)
            kls.append(lead.mean(0).reshape(rows, -1).cpu().double().numpy())
    return values, np.concatenate(kls, axis=1)


def _marginal_kl(guide: Any, prior: Any) -> Tensor | None:
    q, p = univariate(guide), univariate(prior)
    if q is None or p is None:
        return None
    try:
        kl: Tensor = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return kl
