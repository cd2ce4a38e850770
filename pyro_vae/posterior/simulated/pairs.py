"""Draw latents and data from the model, and see where a guide's posterior puts those latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine.util import site_is_factor
from scipy.special import logsumexp
from torch import Tensor

from pyro_vae.pairs.isolation import isolated
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import drawn_sites, sample_sites

Array = NDArray[np.float64]

UNIVARIATE = torch.Size()


@dataclass(frozen=True)
class Simulated:
    """Some observations that the model made."""

    truth: dict[str, Tensor]
    """The latents behind them, by site, (rows, ...)."""
    trace: Any
    """The run of the model that drew them."""
    args: tuple[Tensor, ...]
    """The programs' arguments, with the data in place of the observed ones."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.args[0])


def example(model: Callable[..., Any], seed: int) -> Tensor:
    """Two observations of the model's own, for their shape."""
    sample = getattr(model, "sample", None)
    if not callable(sample):
        raise ValueError(
            "there are no data to take the shapes from, and the model has no method sample(n) to make some; "
            "give data="
        )
    with isolated(model, model, seed=seed):
        made: Tensor = sample(2)
    return made


def simulate(pair: Pair, block: slice) -> Simulated:
    """Latents drawn from the model, and the arguments with data drawn from them in place of the observed."""
    args = tuple(arg[block] for arg in pair.args)
    rows = len(args[0])
    drawn = pair.run_model(args, 1, free=True)
    given = pair.run_model(args, 1, given=drawn)
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
    return Simulated(truth, drawn, tuple(simulated))


def _same(seen: Tensor, arg: Tensor) -> bool:
    return seen.numel() == arg.numel() and torch.equal(seen.reshape(arg.shape).to(arg), arg)


def transforms(pair: Pair, simulated: Simulated) -> Array | None:
    """Q(z* | x*) exactly, (rows, latents); ``None`` if a marginal has no distribution function."""
    sites = drawn_sites(pair.run_guide(simulated.args, 1))
    if set(sites) != set(simulated.truth) or len(sites) != 1:
        return None  # a site may depend on another: its conditional is not its marginal
    (name,) = sites
    marginal = univariate(sites[name]["fn"])
    value = simulated.trace.nodes[name]["value"].to(simulated.args[0].device)
    if marginal is None or value.shape != sites[name]["value"].shape:
        return None
    try:
        transform = marginal.cdf(value)
    except NotImplementedError:
        return None
    if marginal.support.is_discrete:
        return None  # the truth ties with draws: ranks break ties
    ordered: Tensor = pair.draws_first(sites[name], transform, 1, simulated.rows)[0]
    return ordered.reshape(simulated.rows, -1).cpu().double().numpy()


def ranks(pair: Pair, simulated: Simulated, draws: int, chunk: int) -> Array:
    """Fraction of the guide's draws below the truth, ties and ends spread uniformly, (rows, latents)."""
    rows = simulated.rows
    counts = {name: torch.zeros(2, *value.shape) for name, value in simulated.truth.items()}
    step = max(1, chunk // rows)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        sites = sample_sites(pair.run_guide(simulated.args, count))
        for name, value in simulated.truth.items():
            found = pair.value(sites[name], count, rows)
            counts[name] += torch.stack([(found < value).sum(0), (found == value).sum(0)])
    below, tied = (torch.cat([each[i].reshape(rows, -1) for each in counts.values()], 1) for i in range(2))
    return ((below + torch.rand(below.shape, device="cpu") * (tied + 1)) / (draws + 1)).double().numpy()


def joint(pair: Pair, simulated: Simulated, draws: int, chunk: int) -> tuple[Array, Array, Array]:
    """For each row: the rank of log p(x*|z*) among that of the guide's draws, in (0, 1), and a lower and an
    upper bound of log p(x*) in nats; NaN where the guide's density at z* is not known."""
    rows, (likelihood, weight) = simulated.rows, _at_truth(pair, simulated)
    below, tied, weights = np.zeros(rows), np.zeros(rows), []
    step = max(1, chunk // rows)
    for first in range(0, draws, step):
        part = slice(first, min(first + step, draws))
        block = pair.read(*pair.traces(simulated.args, part.stop - first), slice(0, rows), part)
        found = block.reconstruction.numpy()
        below += (found < likelihood).sum(0)
        tied += (found == likelihood).sum(0)
        weights.append(block.log_weight.numpy())
    together = np.concatenate(weights)
    rank = (below + torch.rand(rows, device="cpu").double().numpy() * (tied + 1)) / (draws + 1)
    lower = logsumexp(together, axis=0) - np.log(draws)
    upper = logsumexp(np.concatenate([together[1:], weight[None]]), axis=0) - np.log(draws)
    return rank, lower, upper


def _at_truth(pair: Pair, simulated: Simulated) -> tuple[Array, Array]:
    """log p(x*|z*), and log p(x*, z*) − log q(z*|x*), (rows,)."""
    rows = simulated.rows
    model_sites = sample_sites(pair.run_model(simulated.args, 1, given=simulated.trace))
    prior, likelihood = (
        sum(
            pair.log_prob(site, 1, rows)[0].numpy()
            for site in model_sites.values()
            if site["is_observed"] == seen
        )
        for seen in (False, True)
    )
    unknown = np.full(rows, np.nan)
    try:
        guide_sites = drawn_sites(pair.run_guide(simulated.args, 1, given=simulated.trace))
        density = sum(pair.log_prob(site, 1, rows)[0].numpy() for site in guide_sites.values())
    except (NotImplementedError, RuntimeError, ValueError):  # a flow that cannot be inverted
        return np.asarray(likelihood), unknown
    known = set(guide_sites) == set(simulated.truth)  # auxiliary draws have no known marginal
    return np.asarray(likelihood), np.asarray(prior + likelihood - density) if known else unknown


def univariate(distribution: Any) -> Any:
    """The marginals of independent coordinates or of a multivariate Normal; else ``None``."""
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if isinstance(base, torch.distributions.MultivariateNormal):
        return torch.distributions.Normal(base.loc, base.variance.sqrt())
    return base if base.event_shape == UNIVARIATE else None
