"""Where refinement begins: the Normal that a guide has for each observation, in free coordinates."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_vae.guides.latents.sites import LocalSite
from pyro_vae.guides.refining.steps import Normals

Sites = tuple[LocalSite, ...]

DRAWS = 200
"""For guides whose moments have no closed form: the steps forget how good they were."""


def starting_normals(
    guide: Callable[..., Any], sites: Sites, args: tuple[Any, ...], kwargs: dict[str, Any], *, full: bool
) -> Normals:
    """The guide's own mean and covariance for each observation, of the latents ``sites`` side by side.

    Encoder guides tell them by ``get_posterior``, programs of Normals by one run; the moments of flows, of
    Pyro's autoguides and of other programs are those of draws, without their correlations. Raises ValueError
    if the guide does not draw a latent, or has no spread to start from.

    Parameters
    ----------
    guide
        The program, called as ``guide(*args, **kwargs)``.
    sites
        The model's latents.
    args, kwargs
        The observations.
    full
        Whether the Normals are to have a full covariance.
    """
    told = _by_its_posterior(guide, sites, args, kwargs) or _by_its_sites(guide, sites, args, kwargs)
    normals = _by_draws(guide, sites, args, kwargs) if told is None else told
    factor = normals.factor
    if full and factor.dim() == 2:
        factor = torch.diag_embed(factor)
    if not full and factor.dim() == 3:
        factor = factor.square().sum(-1).sqrt()
    return Normals(normals.loc.detach().contiguous(), factor.detach().contiguous())


def _by_its_posterior(
    guide: Callable[..., Any], sites: Sites, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Normals | None:
    """What ``get_posterior`` says, where that is one distribution for each observation."""
    if not hasattr(guide, "get_posterior"):
        return None
    try:
        told = guide.get_posterior(*args, **kwargs)
    except (NotImplementedError, TypeError):  # Pyro's base class has the method, but not for every guide
        return None
    shape = torch.Size([sum(site.size for site in sites)])
    if len(told.batch_shape) != 1 or told.event_shape != shape:
        return None
    if _transforms(told):
        return _moments_of_draws(told.sample((DRAWS,)))
    return _moments(_base(told), shape)


def _by_its_sites(
    guide: Callable[..., Any], sites: Sites, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Normals | None:
    """From the Normals that a program draws latents from, if these do not depend on each other's draws."""
    runs = []
    for _ in range(2 if len(sites) > 1 else 1):
        trace = poutine.trace(guide).get_trace(*args, **kwargs).nodes
        parts = [_of_site(trace, site) for site in sites]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        runs.append(Normals(torch.cat([part.loc for part in known], -1), _beside([p.factor for p in known])))
    same = all(torch.equal(one, other) for one, other in zip(runs[0], runs[-1], strict=True))
    return runs[0] if same else None


def _beside(factors: list[Tensor]) -> Tensor:
    """The factor of independent latents side by side."""
    if all(factor.dim() == 2 for factor in factors):
        return torch.cat(factors, -1)
    blocks = [factor if factor.dim() == 3 else torch.diag_embed(factor) for factor in factors]
    size = sum(block.shape[-1] for block in blocks)
    together, first = blocks[0].new_zeros(len(blocks[0]), size, size), 0
    for block in blocks:
        last = first + block.shape[-1]
        together[:, first:last, first:last] = block
        first = last
    return together


def _of_site(trace: Any, site: LocalSite) -> Normals | None:
    """The Normal of one latent, if it is one in the coordinates that ``biject_to`` has for its support."""
    if site.name not in trace:
        raise ValueError(
            f"the guide has no site '{site.name}', which the model draws; add it to the guide, or "
            "marginalize it in the model"
        )
    fn = trace[site.name]["fn"]
    base = _base(fn)
    normals = _moments(base, site.unconstrained_shape)
    if normals is None:
        return None
    value = base.mean
    for transform in _transforms(fn):
        value = transform(value)
    there = site.transform.inv(value)
    same = there.shape == base.mean.shape and torch.allclose(there, base.mean, rtol=1e-3, atol=1e-3)
    return normals if same and normals.loc.dim() == 2 else None


def _moments(base: Distribution, shape: torch.Size) -> Normals | None:
    """Those of a Normal over values of this shape, side by side."""
    if isinstance(base, MultivariateNormal) and base.event_shape == torch.Size([shape.numel()]):
        return Normals(base.loc, base.scale_tril.expand(*base.loc.shape, -1))
    if isinstance(base, Normal) and base.loc.shape[base.loc.dim() - len(shape) :] == shape:
        rows = base.loc.shape[: base.loc.dim() - len(shape)]
        return Normals(base.loc.reshape(*rows, -1), base.scale.expand_as(base.loc).reshape(*rows, -1))
    return None


def _by_draws(
    guide: Callable[..., Any], sites: Sites, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Normals:
    draws = []
    for _ in range(DRAWS):
        trace = poutine.trace(guide).get_trace(*args, **kwargs).nodes
        parts = [_coordinates(site, trace[site.name]["value"]) for site in sites]
        draws.append(torch.cat(parts, -1))
    normals = _moments_of_draws(torch.stack(draws))
    if not torch.isfinite(normals.loc).all() or not (normals.factor > 0).all():
        still = next(
            (site.name for site in sites if isinstance(trace[site.name]["fn"], Delta)), sites[0].name
        )
        raise ValueError(
            f"the guide has no mean and spread of '{still}' to start from; give a guide whose draws differ "
            "and are finite, such as one of Normals"
        )
    return normals


def _coordinates(site: LocalSite, value: Any) -> Tensor:
    """Of one value of a latent for each observation: (n, D)."""
    axis = value.dim() - len(site.event_shape) + site.observation_dim
    free: Tensor = site.transform.inv(value)
    return free.movedim(axis, 0).reshape(value.shape[axis], -1)


def _moments_of_draws(draws: Tensor) -> Normals:
    """Means and standard deviations of (draws, n, D)."""
    return Normals(draws.mean(0), draws.std(0))


def _base(distribution: Distribution) -> Distribution:
    """The Normal beneath, if there is one."""
    while isinstance(distribution, Independent | TransformedDistribution):
        distribution = distribution.base_dist
    return distribution


def _transforms(distribution: Distribution) -> list[Any]:
    """The maps above the distribution beneath, innermost first."""
    maps: list[Any] = []
    while isinstance(distribution, Independent | TransformedDistribution):
        if isinstance(distribution, TransformedDistribution):
            maps = [*distribution.transforms, *maps]
        distribution = distribution.base_dist
    return maps
