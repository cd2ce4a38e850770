"""The best approximation within a guide's family for each observation on its own, found by optimization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vae.pairs.isolation import owner
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import sample_sites

LEARNING_RATE = 0.1
"""In units of the standard deviations at the start of a round."""

REPEATS = 16
"""Gradients whose mean says whether the optimum is reached, and their spread how well that is known."""

PROMISED = 0.1
"""Nats that a step from the optimum may still promise."""

ROUNDS = 4
"""A narrow guide far off needs small steps first and large ones later, so each round measures anew."""


def fit_local(pair: Pair, *, steps: int = 400, particles: int = 16, seed: int = 0) -> tuple[Pair, Tensor]:
    """A pair whose guide has parameters of its own for each observation of ``pair``, that maximize the ELBO,
    and of which observations they have converged.

    The family is the guide's: Normals stay Normals with their diagonal or full covariance, and what the
    guide makes of them (supports, flows) stays as it is. Optimization starts at the guide's output, moves in
    units of its standard deviations, and follows the path derivative of the ELBO (Roeder, Wu and Duvenaud,
    2017, "Sticking the landing"), whose noise vanishes where the family contains the posterior.

    All observations are optimized together, so memory grows with observations × ``particles``. Raises
    ValueError if a latent of the guide is not Normal underneath, or depends on other draws."""
    for program in (pair.model, pair.guide):
        module = owner(program)
        if module is not None:
            module.requires_grad_(False)  # copies; only the local parameters move
    sites = local_sites(pair)
    for part in range(ROUNDS):
        local = replace(pair, guide=_Substituted(pair.guide, sites))
        _optimize(local, sites, steps // ROUNDS, particles, seed + part)
        sites = {name: site.recentred() for name, site in sites.items()}
    local = replace(pair, guide=_Substituted(pair.guide, sites))
    return replace(local, whole=True), _promises(local, sites, particles, seed + ROUNDS) < PROMISED


def _promises(pair: Pair, sites: dict[str, NormalSite], particles: int, seed: int) -> Tensor:
    """Nats that a Newton step from here promises each observation, ½ ‖gradient‖² in units of the standard
    deviations, less what the noise of the gradients makes of it."""
    parameters = [parameter for site in sites.values() for parameter in (site.shift, site.raw)]
    measured = []
    for repeat in range(REPEATS):
        with pair.evaluation(seed, repeat, rows=particles * pair.observations), torch.enable_grad():
            gradients = torch.autograd.grad(_path_elbo(pair, sites, particles), parameters)
        measured.append(torch.cat([gradient.flatten(1) for gradient in gradients], dim=1))
    each = torch.stack(measured).double().cpu()
    noise = each.var(0).sum(-1) / REPEATS
    return torch.nan_to_num((each.mean(0).square().sum(-1) - noise) / 2, nan=torch.inf)


def _optimize(pair: Pair, sites: dict[str, NormalSite], steps: int, particles: int, seed: int) -> None:
    parameters = [parameter for site in sites.values() for parameter in (site.shift, site.raw)]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        with pair.evaluation(seed, step, rows=particles * pair.observations), torch.enable_grad():
            loss = -_path_elbo(pair, sites, particles)
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.nan_to_num(gradient)  # an impossible draw must not stop the others
        optimizer.step()
        schedule.step()


@dataclass(frozen=True)
class NormalSite:
    """Parameters of one site for each observation, relative to what the guide gave."""

    loc: Tensor
    """(rows, ...)"""
    scale: Tensor
    """Standard deviations of the shape of ``loc``, or a Cholesky factor with one dimension more."""
    wrap: Callable[[Any], Any]
    """From the Normal to the distribution that the guide samples."""
    full: bool
    shift: Tensor
    raw: Tensor

    @classmethod
    def around(cls, distribution: Any, name: str) -> NormalSite:
        """Starting at a distribution of the guide."""
        base, wrap = _unwrap(distribution)
        full = isinstance(base, torch.distributions.MultivariateNormal)
        if not full and not isinstance(base, torch.distributions.Normal):
            raise ValueError(
                f"the guide draws '{name}' from {type(base).__name__}; local optimization knows Normal and "
                "MultivariateNormal, plain or transformed"
            )
        loc = base.loc.detach()
        scale = (base.scale_tril if full else base.scale).detach().expand(*loc.shape, *loc.shape[-1:] * full)
        return cls(loc, scale, wrap, full, *_zeros(loc, scale))

    def recentred(self) -> NormalSite:
        """The same distributions, with steps measured in their own standard deviations."""
        with torch.no_grad():
            loc, scale = self._moments(self.shift, self.raw)
        shift, raw = _zeros(loc, scale)
        return replace(self, loc=loc, scale=scale, shift=shift, raw=raw)

    def _moments(self, shift: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        if self.full:
            factor = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
            return self.loc + (self.scale @ shift[..., None])[..., 0], self.scale @ factor
        return self.loc + self.scale * shift, self.scale * raw.exp()

    def transformed(self) -> Tensor:
        """The value that the location has in the model."""
        value = self.wrap(dist.Delta(self.loc, event_dim=0))
        return value.sample()  # type: ignore[no-any-return]

    def distribution(self, repeats: int, *, frozen: bool = False) -> Any:
        """For ``repeats`` copies of the observations; ``frozen`` without gradients of the parameters."""
        shift, raw = (self.shift.detach(), self.raw.detach()) if frozen else (self.shift, self.raw)
        loc, scale = (_tile(tensor, repeats) for tensor in self._moments(shift, raw))
        if self.full:
            return self.wrap(dist.MultivariateNormal(loc, scale_tril=scale))
        return self.wrap(dist.Normal(loc, scale))


class _Substituted:
    """A guide that draws some sites from local distributions."""

    def __init__(self, guide: Callable[..., Any], sites: dict[str, NormalSite]) -> None:
        self.guide, self.sites = guide, sites

    def __call__(self, *args: Tensor) -> Any:
        with _Substitute(self.sites, len(args[0])):
            return self.guide(*args)


class _Substitute(Messenger):
    def __init__(self, sites: dict[str, NormalSite], rows: int) -> None:
        super().__init__()
        self.sites, self.rows = sites, rows

    def _pyro_sample(self, msg: Any) -> None:
        site = self.sites.get(msg["name"])
        if site is not None:
            msg["fn"] = site.distribution(self.rows // len(site.loc))


def _path_elbo(pair: Pair, sites: dict[str, NormalSite], particles: int) -> Tensor:
    """Sum over observations of the ELBO, with the gradient along the draws only."""
    guide_trace, model_trace = pair.traces(pair.tensors, particles)
    repeats = particles if pair.layout == "rows" else 1
    total: Any = 0.0
    for name, site in sample_sites(guide_trace).items():
        if name in sites:
            site["fn"] = sites[name].distribution(repeats, frozen=True)
        total = total - site["fn"].log_prob(site["value"]).sum()
    for site in sample_sites(model_trace).values():
        total = total + pair.log_prob(site, particles, pair.observations).sum()
    elbo: Tensor = total / particles
    return elbo


def local_sites(pair: Pair) -> dict[str, NormalSite]:
    """What the guide draws each latent from, for each observation."""
    single = replace(pair, layout="rows")
    traces = []
    for draw in range(2):
        with single.evaluation(draw):
            traces.append(sample_sites(single.run_guide(single.tensors, 1)))
    sites = {}
    for name, site in traces[0].items():
        if isinstance(site["fn"], dist.Delta):
            continue  # a function of other sites, as Pyro's autoguides write them
        local, again = (NormalSite.around(trace[name]["fn"], name) for trace in traces)
        if not (torch.equal(local.loc, again.loc) and torch.equal(local.scale, again.scale)):
            raise ValueError(
                f"the guide's '{name}' depends on its other draws; local optimization needs sites that "
                "depend on the observation alone"
            )
        if len(local.loc) != pair.observations:
            raise ValueError(
                f"the guide's '{name}' lies in several plates, and local optimization knows one; declare the "
                "others by .to_event() in model and guide, or ask repair or diagnose(..., refined=True)"
            )
        sites[name] = local
    return sites


def _unwrap(distribution: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The Normal underneath, and the way back up."""
    if isinstance(distribution, torch.distributions.Independent):
        base, wrap = _unwrap(distribution.base_dist)
        events = distribution.reinterpreted_batch_ndims
        return base, lambda normal: wrap(normal).to_event(events)
    if isinstance(distribution, torch.distributions.TransformedDistribution):
        base, wrap = _unwrap(distribution.base_dist)
        transforms = distribution.transforms
        return base, lambda normal: dist.TransformedDistribution(wrap(normal), transforms)
    return distribution, lambda normal: normal


def _tile(tensor: Tensor, repeats: int) -> Tensor:
    return tensor if repeats == 1 else tensor.repeat(repeats, *[1] * (tensor.dim() - 1))


def _zeros(*like: Tensor) -> list[Tensor]:
    return [torch.zeros_like(tensor).requires_grad_() for tensor in like]
