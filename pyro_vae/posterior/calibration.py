"""Simulation-based calibration: does the guide's posterior cover the latents that made the data?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro.poutine.util import site_is_factor
from scipy import stats
from torch import Tensor

from pyro_vae.batches.files import read_rows
from pyro_vae.batches.streams import first_rows, is_stream
from pyro_vae.pairs.isolation import isolated
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.drawing import CHUNK, Pair, coordinate_names, sample_sites
from pyro_vae.posterior.preparation import as_parts, prepare

__all__ = ["calibrate"]

Array = NDArray[np.float64]

LEVELS = (0.5, 0.8, 0.9, 0.95)
UNIVARIATE = torch.Size()


def calibrate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    n: int = 1000,
    *,
    data: Any = None,
    draws: int = 1000,
    seed: int = 0,
    chunk: int = CHUNK,
) -> xr.Dataset:
    r"""Draw latents and data from the model, and ask the guide where in its posterior those latents lie.

    For the exact posterior the probability integral transform u = Q(z* | x*) is uniform for every latent
    number (Cook, Gelman and Rubin, 2006, "Validation of software for Bayesian models using posterior
    quantiles"; Talts, Betancourt, Simpson, Vehtari and Gelman, 2018, "Validating Bayesian inference
    algorithms with simulation-based calibration"). A guide with standard deviations s times the true ones
    covers 2Φ(1.645 s) − 1 at 90%.

    Parameters
    ----------
    model, guide
        As in :func:`~pyro_vae.posterior.importance.log_weights`; the guide must be amortized.
    n
        Simulations.
    data
        Gives the shapes; of a conditional model also the conditions, used again and again up to ``n`` (of a
        ``Dataset`` or a ``DataLoader`` the first ``n``). What the model observes is replaced by simulated
        data. Models with a method ``sample(n)``, as those of :mod:`pyro_vae.models`, need none.
    draws
        Draws for each simulation where ranks are needed: Normal and other univariate guides have exact
        transforms, and so do multivariate Normals; flows and guides with several latent sites are ranked.
    seed, chunk
        As in :func:`~pyro_vae.posterior.importance.log_weights`.

    Returns
    -------
    xr.Dataset
        ``pit`` over (simulation, latent); ``coverage`` over (level, latent): how often the central interval
        of each level holds the truth; ``uniform_p`` over latent: p-value of a Kolmogorov–Smirnov test of
        uniformity. Attributes ``simulations``, ``seed`` and ``method`` ("exact" or "ranks").

    Raises
    ------
    ValueError
        If there are no ``data`` and the model cannot sample; if what the model observes is none of its
        arguments, so that simulated data cannot take its place; if the guide has parameters for each
        observation.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5 / 2))  # half of the right standard deviation
    >>> calibrate(model, guide, data=torch.zeros(2))["coverage"].sel(level=0.9).round(1).values
    array([0.6])
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n is a {type(n).__name__}; give the number of simulations, and data by data=")
    if n < 2:
        raise ValueError(f"n is {n}; simulate at least 2 observations, and 1000 is a good number")
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk)
    if data is None:
        data = _example(model, seed)
    elif is_stream(data):
        data = first_rows(data, n)
    parts = as_parts(data)
    rows = np.arange(n) % parts[0].shape[0]
    repeated = tuple(part[rows] if isinstance(part, Tensor) else read_rows(part, rows) for part in parts)
    if prepare(model, guide, data).whole:
        raise ValueError(
            "the guide has parameters for each observation; calibrate needs one that takes new data"
        )
    pair = prepare(model, guide, repeated)
    blocks, exact, names = [], True, []
    for start in range(0, n, chunk):
        block = slice(start, min(start + chunk, n))
        with pair.evaluation(seed, start):
            truth, args = _simulate(pair, block)
            transforms = _transforms(pair, truth, args)
            exact = transforms is not None
            if transforms is None:
                transforms = _ranks(pair, truth, args, draws, chunk)
            blocks.append(transforms)
        names = [name for site, value in truth.items() for name in coordinate_names(site, value.shape[1:])]
    pit = np.concatenate(blocks)
    covered = [np.abs(2 * pit - 1) <= level for level in LEVELS]
    return xr.Dataset(
        {
            "pit": (("simulation", "latent"), pit),
            "coverage": (("level", "latent"), np.mean(covered, axis=1)),
            "uniform_p": ("latent", [float(stats.kstest(column, "uniform").pvalue) for column in pit.T]),
        },
        {"simulation": np.arange(n), "latent": names, "level": list(LEVELS)},
        {"simulations": n, "seed": seed, "method": "exact" if exact else "ranks"},
    )


def _example(model: Callable[..., Any], seed: int) -> Tensor:
    """Two observations of the model's own, for their shape."""
    sample = getattr(model, "sample", None)
    if not callable(sample):
        raise ValueError(
            "there are no data to take the shapes from, and the model has no method sample(n) to make some; "
            "give data="
        )
    with isolated(model, model, seed=seed):
        example: Tensor = sample(2)
    return example


def _simulate(pair: Pair, block: slice) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Latents drawn from the model, and the arguments with data drawn from them in place of the observed."""
    args = tuple(arg[block] for arg in pair.args)
    rows = len(args[0])
    given, drawn = pair.traces(args, 1)[1], pair.run_model(args, 1, free=True)
    truth, simulated = {}, list(args)
    for name, site in sample_sites(given).items():
        if site_is_factor(site):
            raise ValueError(
                f"the model has the factor '{name}', which cannot be drawn from, so nothing can be simulated"
            )
        value = pair.value(drawn.nodes[name], 1, rows)[0]
        if site["is_observed"]:
            seen = pair.observed_value(site, rows)
            found = [i for i, arg in enumerate(args) if _same(seen, arg)]
            if not found:
                raise ValueError(
                    f"observed site '{name}' is none of the model's arguments, so simulated data cannot take "
                    "its place; let the model observe an argument as it is"
                )
            simulated[found[0]] = value.reshape(args[found[0]].shape).to(args[found[0]])
        else:
            truth[name] = value
    return truth, tuple(simulated)


def _same(seen: Tensor, arg: Tensor) -> bool:
    return seen.numel() == arg.numel() and torch.equal(seen.reshape(arg.shape).to(arg), arg)


def _transforms(pair: Pair, truth: dict[str, Tensor], args: tuple[Tensor, ...]) -> Array | None:
    """Exact transforms, (rows, latents); ``None`` if a marginal has no distribution function."""
    sites = sample_sites(pair.run_guide(args, 1))
    if set(sites) != set(truth) or len(sites) != 1:
        return None  # a site may depend on another: its conditional is not its marginal
    (name,) = sites
    marginal = univariate(sites[name]["fn"])
    if marginal is None:
        return None
    rows = len(args[0])
    value = truth[name].reshape(*sites[name]["value"].shape).to(args[0].device)
    try:
        transform = marginal.cdf(value)
    except NotImplementedError:
        return None
    lead: Tensor = pair.lead(sites[name], transform, 1, rows)[0]
    return lead.reshape(rows, -1).cpu().double().numpy()


def _ranks(pair: Pair, truth: dict[str, Tensor], args: tuple[Tensor, ...], draws: int, chunk: int) -> Array:
    """Fraction of the guide's draws below the truth, ends spread uniformly, (rows, latents)."""
    rows = len(args[0])
    below = {name: torch.zeros_like(value) for name, value in truth.items()}
    step = max(1, chunk // rows)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        sites = sample_sites(pair.run_guide(args, count))
        for name, value in truth.items():
            below[name] += (pair.value(sites[name], count, rows) < value).sum(0)
    counts = torch.cat([count.reshape(rows, -1) for count in below.values()], dim=1)
    return ((counts + torch.rand(counts.shape, device=counts.device)) / (draws + 1)).double().numpy()


def univariate(distribution: Any) -> Any:
    """The marginals of independent coordinates or of a multivariate Normal; else ``None``."""
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.MultivariateNormal):
        return torch.distributions.Normal(base.loc, base.variance.sqrt())
    return base if base.event_shape == UNIVARIATE else None
