"""Posterior collapse: which latent dimensions carry information about the observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.naming import named
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import prepare
from pyro_vae.posterior.evaluation.sites import coordinate_names, drawn_sites, sample_sites
from pyro_vae.posterior.simulated.pairs import univariate

Array = NDArray[np.float64]

ACTIVE = 0.01
"""Activity above which a unit counts as active (Burda, Grosse and Salakhutdinov, 2016, whose prior has
variance 1)."""

SURE, SURE_OF_PRIOR = 4.0, 6.0
"""Standard errors by which an activity, and differences between the priors of observations, must exceed the
noise of their draws."""

SIXTY_EIGHT = (0.158655, 0.841345)
"""Quantiles of a Normal at one standard deviation to either side."""


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

    The activity of dimension u is how much the observations move its posterior mean, in units of the prior:
    :math:`A_u = \operatorname{Var}_x(\operatorname{E}_{q(z|x)}[z_u]) / \operatorname{Var}_{p(z)}(z_u)`, and u
    is active if A_u > 0.01 (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders", whose
    priors have variance 1). So rescaling a latent changes nothing. The noise of the means is taken off, so
    that a collapsed dimension has activity 0 in expectation for any number of draws, and it must be exceeded
    by four standard errors. Where the prior depends on the observation (conditional models), means count
    from the prior's.

    Activity sees how means move, not spreads: look at ``kl`` too.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk
        As in :func:`~pyro_vae.posterior.importance.log_weights`; few draws do.

    Returns
    -------
    xr.Dataset
        Over ``latent``: ``activity`` (a share of the prior's variance), ``active``, and ``kl``, the mean KL
        of the guide's marginal from the prior's in nats per observation. For factorized guides and priors the
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
    parts: list[_Moments] = []
    names: list[str] = []
    step = pair.observations if pair.whole else max(1, chunk // draws)
    for start in range(0, pair.observations, step):
        with pair.evaluation(seed, start, rows=min(step, pair.observations) * draws):
            part, names = _statistics(pair, tuple(arg[start : start + step] for arg in pair.args), draws)
        parts.append(part)
    moments = _Moments(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    priors = moments.prior_mean.var(0, ddof=1), moments.prior_variance.mean(0) / draws
    depends = priors[0] > priors[1] * (1 + SURE_OF_PRIOR * np.sqrt(2 / (pair.observations - 1)))
    mean = moments.mean - np.where(depends, moments.prior_mean, 0.0)
    noise = moments.variance.mean(0) / draws + np.where(depends, priors[1], 0.0)
    with np.errstate(all="ignore"):  # a prior of one value leaves nothing to be active
        variance, width = moments.prior_variance.mean(0), moments.prior_width.mean(0)
        # heavy tails have no variance, and values that are rare no width
        unit = np.where((width > 0) & (width < variance / 2), width, variance)
        activity = np.nan_to_num((mean.var(0, ddof=1) - noise) / unit)
        sure = activity > SURE * np.sqrt(2 / (pair.observations - 1)) * noise / unit
    active = (activity > ACTIVE) & sure
    columns = {"activity": activity, "active": active, "kl": moments.kl.mean(0)}
    attrs = {"active_units": int(active.sum()), "draws": draws, "seed": seed}
    return named(
        xr.Dataset({name: ("latent", column) for name, column in columns.items()}, {"latent": names}, attrs)
    )


class _Moments(NamedTuple):
    """Of each latent number for each observation, (rows, latents): under q, and under the prior."""

    mean: Array
    variance: Array
    prior_mean: Array
    prior_variance: Array
    prior_width: Array
    """The square of half the width that holds 68% of the prior, which heavy tails do not reach."""
    kl: Array


def _statistics(pair: Pair, args: tuple[Tensor, ...], draws: int) -> tuple[_Moments, list[str]]:
    """Moments of the draws, and the names of the latent numbers."""
    rows = len(args[0])
    guide_trace, model_trace = pair.traces(args, draws)
    guide_sites, prior_sites = drawn_sites(guide_trace), sample_sites(pair.run_model(args, draws))
    values, kls, names = [], [], []
    means, variances, widths = [], [], []  # of the prior
    for name, site in sample_sites(model_trace).items():
        if site["is_observed"]:
            continue
        value = pair.value(site, draws, rows)
        values.append(_flat(value))
        drawn = _flat(pair.value(prior_sites[name], draws, rows))
        exact = _constant_variance(prior_sites[name]["fn"])
        means.append(drawn.mean(0))
        variances.append(drawn.var(0, ddof=1) if exact is None else np.full(drawn.shape[1:], exact))
        low, high = np.quantile(drawn, SIXTY_EIGHT, axis=0)
        widths.append(((high - low) / 2) ** 2)
        names += coordinate_names(name, value.shape[2:])
        marginal_kl = _marginal_kl(guide_sites[name]["fn"], site["fn"])
        if marginal_kl is None:
            kls.append(np.full((rows, value[0, 0].numel()), np.nan))
        else:
            ordered: Tensor = pair.draws_first(site, marginal_kl.expand(site["value"].shape), draws, rows)
            kls.append(ordered.mean(0).reshape(rows, -1).cpu().double().numpy())
    q = np.concatenate(values, axis=2)
    mean, variance, width, kl = (np.concatenate(column, axis=1) for column in (means, variances, widths, kls))
    return _Moments(q.mean(0), q.var(0, ddof=1), mean, variance, width, kl), names


def _constant_variance(prior: Any) -> float | None:
    """Of a prior that is one and the same for all numbers, draws and observations; else ``None``."""
    marginal = univariate(prior)
    if marginal is None:
        return None
    try:
        mean, variance = marginal.mean, marginal.variance
    except NotImplementedError:
        return None
    same = bool((mean == mean.flatten()[0]).all() and (variance == variance.flatten()[0]).all())
    return float(variance.flatten()[0]) if same and bool(variance.isfinite().all()) else None


def _flat(value: Tensor) -> Array:
    """(draws, rows, numbers) in float64."""
    flat: Array = value.reshape(*value.shape[:2], -1).double().numpy()
    return flat


def _marginal_kl(guide: Any, prior: Any) -> Tensor | None:
    q, p = univariate(guide), univariate(prior)
    if q is None or p is None:
        return None
    try:
        kl: Tensor = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return kl
