"""Hard posteriors whose moments, evidence and draws are known, and how often wrong draws are believed.

Each target holds several posteriors, one for each observation: the data are the parameters of its density and
of the guide, so that one Pyro pair serves all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor

Array = NDArray[np.float64]

LARGEST_MEAN_ERROR = 0.3
"""In standard deviations of the posterior; draws further off are wrong."""

SD_RATIOS = (0.8, 1.25)
"""Between which the standard deviation of draws is right."""


@dataclass(frozen=True)
class Target:
    """Posteriors of n observations in d dimensions, and a guide of independent Normals to begin with."""

    name: str
    log_density: Callable[[Tensor, Tensor], Tensor]
    """Normalized, of latents (..., n, d) and parameters (..., n, k)."""
    parameters: Array
    draw: Callable[[np.random.Generator, int], Array]
    """Exact draws, (draws, n, d)."""
    mean: Array
    sd: Array
    loc: Array
    scale: Array
    reached: NDArray[np.bool_] | None = None
    """Of which observations a thousand draws of the guide are likely to visit every mode; all by default."""
    bounded: bool = False
    """Whether latents lie in (0, 1) and the guide's Normals are logistic."""

    @property
    def pair(self) -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
        """Model, guide and data. The log evidence is 0 everywhere."""
        d = self.loc.shape[1]
        k = self.parameters.shape[1]
        data = torch.from_numpy(np.concatenate([self.parameters, self.loc, self.scale], axis=1))
        zero, one = torch.zeros(d), torch.ones(d)
        base = dist.Uniform(zero, one) if self.bounded else dist.Normal(zero, 30 * one)
        prior = base.to_event(1)
        upwards = [torch.distributions.SigmoidTransform()] if self.bounded else []

        def model(x):
            with pyro.plate("data", x.shape[-2]):
                z = pyro.sample("z", prior)
                pyro.factor("target", self.log_density(z, x[..., :k]) - prior.log_prob(z))

        def guide(x):
            normal = dist.Normal(x[..., k : k + d], x[..., k + d :])
            with pyro.plate("data", x.shape[-2]):
                pyro.sample("z", dist.TransformedDistribution(normal, upwards).to_event(1))

        return model, guide, data

    def wrong(self, draws: Array) -> NDArray[np.bool_]:
        """Of which observations these draws (draws, n, d) have wrong means or widths."""
        off = abs(draws.mean(0) - self.mean) / self.sd > LARGEST_MEAN_ERROR
        ratio = draws.std(0, ddof=1) / self.sd
        return (off | (ratio < SD_RATIOS[0]) | (ratio > SD_RATIOS[1])).any(axis=1)


class Rate(NamedTuple):
    """How many of so many believed posteriors are wrong, and which share of exact draws would be."""

    name: str
    wrong: int
    believed: int
    total: int
    of_exact: float

    @property
    def excess(self) -> float:
        """By how much the share of wrong among the believed is above that of exact draws."""
        return self.wrong / max(self.believed, 1) - self.of_exact

    def __str__(self) -> str:
        return (
            f"{self.name:44} believed {self.believed:4} of {self.total:4}, wrong {self.wrong:3} "
            f"(exact draws {self.of_exact:.1%})"
        )

    @classmethod
    def of_all(cls, name: str, rates: Sequence[Rate]) -> Rate:
        """Of several targets together; exact draws of what is believed."""
        believed = sum(rate.believed for rate in rates)
        exact = sum(rate.of_exact * rate.believed for rate in rates) / max(believed, 1)
        return cls(name, sum(rate.wrong for rate in rates), believed, sum(r.total for r in rates), exact)


def false_believable(target: Target, tree: Any, seed: int = 0) -> tuple[Rate, Rate]:
    """Of what ``repair`` returned for a target: the rate of wrong draws among those it believes, where the
    guide's draws reach every mode and where they do not."""
    draws = tree["posterior"]["z"].values[0]
    believed = tree["repair"]["believable"].values
    generator = np.random.default_rng(seed)
    exact = np.mean([target.wrong(target.draw(generator, len(draws))) for _ in range(10)], axis=0)
    wrong = target.wrong(draws) & believed
    reached = np.ones(len(wrong), dtype=bool) if target.reached is None else target.reached
    return tuple(
        Rate(name, int(wrong[rows].sum()), int(believed[rows].sum()), int(rows.sum()), float(exact.mean()))
        for name, rows in ((target.name, reached), (f"{target.name}, out of reach", ~reached))
    )


def modes(K: int, d: int, apart: float, guide: str, n: int = 20, seed: int = 0) -> Target:
    """K Normals ``apart`` standard deviations from the centre or, of two in one dimension, from each other.

    The ``guide`` sits on the largest ("one mode"), or has moments of all, in parts too narrow or too wide.
    """
    rng = np.random.default_rng([seed, K, d, int(10 * apart)])
    share = rng.dirichlet(np.full(K, 3.0), n)
    where = rng.normal(size=(n, K, d))
    where *= apart * rng.uniform(0.8, 1.2, (n, K, 1)) / np.linalg.norm(where, axis=2, keepdims=True)
    if K == 2 and d == 1:
        where = np.array([-0.5, 0.5])[:, None] * apart * rng.uniform(0.8, 1.2, (n, 1, 1))
    width = rng.uniform(0.6, 1.4, (n, K, d))
    mean = (share[..., None] * where).sum(1)
    sd = np.sqrt((share[..., None] * (width**2 + where**2)).sum(1) - mean**2)

    def log_density(z, p):
        logs, rest = p[..., :K], p[..., K:].unflatten(-1, (2, K, d))
        normal = dist.Normal(rest[..., 0, :, :], rest[..., 1, :, :])
        return (logs + normal.log_prob(z.unsqueeze(-2)).sum(-1)).logsumexp(-1)

    def draw(rng, count):
        which = np.stack([rng.choice(K, count, p=row) for row in share], axis=1)
        rows = np.arange(n)
        return where[rows, which] + width[rows, which] * rng.normal(size=(count, n, d))

    rows, top = np.arange(n), share.argmax(1)
    if guide == "one mode":
        loc, scale = where[rows, top], width[rows, top] * rng.uniform(0.7, 1.3, (n, 1))
    else:
        loc, scale = mean, sd * rng.uniform(0.5, 1.5, (n, 1))
    parameters = np.concatenate([np.log(share), where.reshape(n, -1), width.reshape(n, -1)], axis=1)
    draws = loc + scale * rng.normal(size=(1000, n, d))
    away = ((draws[:, :, None] - where) / width) ** 2
    visits = (away.sum(-1) < stats.chi2(d).ppf(0.9)).sum(0)
    name = f"{K} modes, d {d}, {apart} apart, guide {guide}"
    reached = ((visits >= 3) | (share < 0.02)).all(1)
    return Target(name, log_density, parameters, draw, mean, sd, loc, scale, reached)


def banana(d: int, bend: float = 0.5, n: int = 20, seed: int = 0) -> Target:
    """z₀ ~ N(0, 2²), z₁ | z₀ ~ N(bend · (z₀² − 4), 1), the others standard Normal."""
    rng = np.random.default_rng([seed, d])
    sd = np.ones((n, d))
    sd[:, 0], sd[:, 1] = 2.0, math.sqrt(1 + 2 * (bend * 4) ** 2)

    def log_density(z, p):
        first, second = z[..., 0], z[..., 1]
        curved = dist.Normal(bend * (first**2 - 4), 1.0).log_prob(second)
        return dist.Normal(0.0, 2.0).log_prob(first) + curved + standard(z[..., 2:])

    def draw(rng, count):
        z = rng.normal(size=(count, n, d))
        z[..., 0] *= 2
        z[..., 1] += bend * (z[..., 0] ** 2 - 4)
        return z

    return around(f"banana, d {d}", rng, log_density, np.zeros((n, 1)), draw, np.zeros((n, d)), sd)


def funnel(d: int, tau: float, n: int = 20, seed: int = 0) -> Target:
    """v ~ N(0, τ²), the others N(0, exp(v)) (Neal, 2003)."""
    rng = np.random.default_rng([seed, d])
    sd = np.full((n, d), math.exp(tau**2 / 4))
    sd[:, 0] = tau

    def log_density(z, p):
        v = z[..., :1]
        return dist.Normal(0.0, tau).log_prob(v[..., 0]) + dist.Normal(0.0, (v / 2).exp()).log_prob(
            z[..., 1:]
        ).sum(-1)

    def draw(rng, count):
        z = rng.normal(size=(count, n, d))
        z[..., :1] *= tau
        z[..., 1:] *= np.exp(z[..., :1] / 2)
        return z

    return around(f"funnel, d {d}, tau {tau}", rng, log_density, np.zeros((n, 1)), draw, 0 * sd, sd)


def student(d: int, freedom: float, n: int = 20, seed: int = 0) -> Target:
    """A multivariate Student-t."""
    rng = np.random.default_rng([seed, d])
    at, width = rng.normal(size=(n, d)), rng.uniform(0.5, 2.0, (n, d))

    def log_density(z, p):
        scale = p[..., d:]
        squares = ((z - p[..., :d]) / scale).square().sum(-1)
        constant = math.lgamma((freedom + d) / 2) - math.lgamma(freedom / 2)
        constant -= d / 2 * math.log(freedom * math.pi)
        return constant - scale.log().sum(-1) - (freedom + d) / 2 * torch.log1p(squares / freedom)

    def draw(rng, count):
        radius = np.sqrt(freedom / rng.chisquare(freedom, (count, n, 1)))
        return at + width * radius * rng.normal(size=(count, n, d))

    sd = width * math.sqrt(freedom / (freedom - 2))
    parameters = np.concatenate([at, width], axis=1)
    return around(f"Student, d {d}, {freedom} degrees", rng, log_density, parameters, draw, at, sd)


def skew(d: int, shape: float = 1.0, n: int = 20, seed: int = 0) -> Target:
    """Logarithms of Gamma(shape) variables, mixed by a rotation."""
    rng = np.random.default_rng([seed, d])
    turn = stats.ortho_group(d, seed=rng).rvs() if d > 1 else np.ones((1, 1))
    back = torch.from_numpy(turn.T.copy())

    def log_density(z, p):
        own = z @ back.T
        return (shape * own - own.exp()).sum(-1) - d * math.lgamma(shape)

    def draw(rng, count):
        # of a small shape as Gamma(shape + 1) · U^(1 / shape): logarithms stay finite
        own = (
            np.log(rng.gamma(shape + 1, size=(count, n, d))) + np.log(rng.uniform(size=(count, n, d))) / shape
        )
        return own @ turn.T

    mean = np.broadcast_to(special.digamma(shape) * turn.sum(1), (n, d))
    sd = np.full((n, d), math.sqrt(special.polygamma(1, shape)))
    return around(f"skew, d {d}, shape {shape}", rng, log_density, np.zeros((n, 1)), draw, mean, sd)


def bounded(d: int, n: int = 20, seed: int = 0) -> Target:
    """Beta variables, some of them heaped at the ends of (0, 1)."""
    rng = np.random.default_rng([seed, d])
    a, b = rng.uniform(0.5, 4.0, (2, n, d))

    def log_density(z, p):
        return dist.Beta(p[..., :d], p[..., d:]).log_prob(z).sum(-1)

    mean, sd = a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b)
    logit = special.digamma(a) - special.digamma(b)
    logit_sd = np.sqrt(special.polygamma(1, a) + special.polygamma(1, b))
    return Target(
        *(f"bounded, d {d}", log_density, np.concatenate([a, b], axis=1)),
        lambda rng, count: rng.beta(a, b, size=(count, n, d)),
        *(mean, sd, logit, logit_sd * rng.uniform(0.5, 1.5, (n, 1))),
        bounded=True,
    )


def normal(d: int, n: int = 20, seed: int = 0) -> Target:
    """A Normal with correlations."""
    rng = np.random.default_rng([seed, d])
    factor = np.eye(d) + rng.normal(size=(d, d)) / math.sqrt(d)
    tril = np.linalg.cholesky(factor @ factor.T)
    at = rng.normal(size=(n, d))

    def log_density(z, p):
        return dist.MultivariateNormal(p, scale_tril=torch.from_numpy(tril)).log_prob(z)

    sd = np.broadcast_to(np.sqrt((tril**2).sum(1)), (n, d))
    return around(
        *(f"Normal, d {d}", rng, log_density, at),
        lambda rng, count: at + rng.normal(size=(count, n, d)) @ tril.T,
        *(at, sd),
    )


def around(
    name: str,
    rng: np.random.Generator,
    log_density: Callable[[Tensor, Tensor], Tensor],
    parameters: Array,
    draw: Callable[[np.random.Generator, int], Array],
    mean: Array,
    sd: Array,
) -> Target:
    """With a guide half a standard deviation off, and half to one and a half times as wide."""
    n, d = sd.shape
    loc = mean + 0.5 * sd * rng.normal(size=(n, d)) / math.sqrt(d)
    return Target(name, log_density, parameters, draw, mean, sd, loc, sd * rng.uniform(0.5, 1.5, (n, 1)))


def standard(z: Tensor) -> Tensor:
    """Log density of independent standard Normals."""
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


def few_targets(n: int = 10) -> Iterator[Target]:
    """One of each kind, for seconds."""
    for guide in ("one mode", "moments"):
        yield modes(3, 2, 8.0, guide, n)
    yield banana(2, n=n)
    yield funnel(3, 1.0, n)
    yield student(5, 3.0, n)
    yield skew(3, n=n)
    yield bounded(3, n)
    yield normal(10, n)


def all_targets(n: int = 20) -> Iterator[Target]:
    """The whole set, for minutes."""
    for d in (1, 2, 5, 10):
        for K in (2, 3, 4):
            for apart in (4.0, 8.0, 14.0):
                for guide in ("one mode", "moments"):
                    yield modes(K, d, apart, guide, n)
    for d in (2, 5, 10):
        yield banana(d, n=n)
        for tau in (1.0, 2.0):
            yield funnel(d, tau, n)
    for d in (2, 10, 20):
        for freedom in (3.0, 5.0):
            yield student(d, freedom, n)
    for d in (2, 5, 10):
        for shape in (0.5, 2.0):
            yield skew(d, shape, n)
    for d in (2, 5, 20):
        yield bounded(d, n)
    for d in (10, 20, 50):
        yield normal(d, n)
