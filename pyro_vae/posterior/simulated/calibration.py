"""Simulation-based calibration: does the guide's posterior cover the latents that made the data?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from pyro_vae.arguments import kind, require_count
from pyro_vae.batches.files import read_rows
from pyro_vae.batches.streams import first_rows, is_stream
from pyro_vae.naming import named
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import PREPARED_ON, prepare
from pyro_vae.posterior.evaluation.selection import as_parts
from pyro_vae.posterior.evaluation.sites import coordinate_names
from pyro_vae.posterior.simulated.pairs import example, joint, ranks, simulate, transforms
from pyro_vae.posterior.simulated.uniformity import uniform_p

LEVELS = (0.5, 0.8, 0.9, 0.95)


def calibrate(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    n: int = 1000,
    *,
    data: Any = None,
    draws: int = 1000,
    seed: int = 0,
    joint_draws: int = 100,
    chunk: int = CHUNK,
) -> xr.Dataset:
    r"""Draw latents and data from the model, and ask the guide where in its posterior those latents lie.

    For the exact posterior the probability integral transform u = Q(z* | x*) is uniform for every latent
    number (Cook, Gelman and Rubin, 2006, "Validation of software for Bayesian models using posterior
    quantiles"; Talts, Betancourt, Simpson, Vehtari and Gelman, 2018, "Validating Bayesian inference
    algorithms with simulation-based calibration"). A guide with standard deviations s times the true ones
    covers 2Φ(1.645 s) − 1 at 90%.

    Right marginals are not yet a right posterior: a guide that returns the prior has them. So the truth is
    also ranked by its log-likelihood log p(x* | z*) among the guide's draws, a quantity of all latents and of
    the data (Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari, 2023, "Simulation-based
    calibration checking for Bayesian computation: the choice of test quantities shapes sensitivity"). And
    because z* is an exact draw from the posterior, the evidence is known from both sides: the mean weight of
    the guide's draws bounds it from below, and with z* among them from above (Grosse, Ghahramani and Adams,
    2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo").

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
        transforms, and so do multivariate Normals; flows, guides with several latent sites and discrete
        latents are ranked, with ties broken at random.
    joint_draws
        Draws for each simulation behind the ranks of the log-likelihood and the bounds of the evidence, which
        come nearer with more.
    seed, chunk
        As in :func:`~pyro_vae.posterior.importance.log_weights`.

    Returns
    -------
    xr.Dataset
        ``pit`` over (simulation, latent); ``coverage`` over (level, latent): how often the central interval
        of each level holds the truth; ``uniform_p`` over latent: p-value of uniformity, by simultaneous bands
        of the distribution function, times the number of latents (Bonferroni); ``joint_pit`` over simulation
        and ``joint_p``: the same of the ranks of the log-likelihood; ``evidence_lower`` and
        ``evidence_upper`` over simulation: bounds of log p(x*) in nats that hold on average, and
        ``sandwich``: the mean distance between them (NaN where q(z*|x*) is not known, as of guides with
        auxiliary draws). Attributes ``simulations``, ``seed`` and ``method`` ("exact" or "ranks").

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
        raise TypeError(f"n is {kind(n)}; give the number of simulations, and data by data=")
    if n < 2:
        raise ValueError(f"n is {n}; simulate at least 2 observations, and 1000 is a good number")
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk)
    require_count("joint_draws", joint_draws, 2)
    if data is None:
        data = example(model, seed)
    elif is_stream(data):
        data = first_rows(data, n)
    parts = as_parts(data)
    rows = np.arange(n) % parts[0].shape[0]
    repeated = tuple(part[rows] if isinstance(part, Tensor) else read_rows(part, rows) for part in parts)
    pair = _ready(model, guide, data, repeated)
    blocks, joints, exact, names = [], [], True, []
    for start in range(0, n, chunk):
        block = slice(start, min(start + chunk, n))
        with pair.evaluation(seed, start, rows=chunk):
            made = simulate(pair, block)
            of_these = pair.knowing(made.args)
            found = transforms(of_these, made)
            exact = found is not None
            blocks.append(ranks(of_these, made, draws, chunk) if found is None else found)
        with pair.evaluation(seed, start, 1, rows=chunk):
            joints.append(np.stack(joint(of_these, made, joint_draws, chunk)))
        names = [
            name for site, value in made.truth.items() for name in coordinate_names(site, value.shape[1:])
        ]
    pit = np.concatenate(blocks)
    joint_pit, lower, upper = np.concatenate(joints, axis=1)
    covered = [np.abs(2 * pit - 1) <= level for level in LEVELS]
    calibration = xr.Dataset(
        {
            "pit": (("simulation", "latent"), pit),
            "coverage": (("level", "latent"), np.mean(covered, axis=1)),
            "uniform_p": ("latent", [min(1.0, pit.shape[1] * uniform_p(column)) for column in pit.T]),
            "joint_pit": ("simulation", joint_pit),
            "joint_p": uniform_p(joint_pit),
            "evidence_lower": ("simulation", lower),
            "evidence_upper": ("simulation", upper),
            "sandwich": float((upper - lower).mean()),
        },
        {"simulation": np.arange(n), "latent": names, "level": list(LEVELS)},
        {"simulations": n, "seed": seed, "method": "exact" if exact else "ranks"},
    )
    return named(calibration)


def _ready(
    model: Callable[..., Any], guide: Callable[..., Any], data: Any, repeated: tuple[Any, ...]
) -> Pair:
    """The pair, ready for repeated data. Raises ValueError if the guide is one for ``data`` alone."""
    if as_parts(data)[0].shape[0] > PREPARED_ON:
        with suppress(ValueError):  # told of the data as they are
            pair = prepare(model, guide, repeated)
            if not pair.whole:
                return pair
    if prepare(model, guide, data).whole:
        raise ValueError(
            "the guide has parameters for each observation; calibrate needs one that takes new data"
        )
    return prepare(model, guide, repeated)
