"""Models with latents that all observations share: one posterior, and one weight for each joint draw.

A regression weight belongs to no observation, so no density does, and no k̂. What can be asked is about the
joint posterior of everything: of shared latents alone, or of these together with those of each observation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.guides.precision import exact_log_prob
from pyro_vae.naming import NAMES, attributes, named
from pyro_vae.pairs.enumeration import by_chain_rule, enumerated
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import (
    DataPlate,
    PairError,
    in_data_plate,
    paired_sites,
    sample_sites,
    site_dims,
)
from pyro_vae.posterior.pareto import effective_draws, evidence_error, khat_threshold, pareto_khat
from pyro_vae.progress import progress_bar

Array = NDArray[np.float64]

AT_ONCE = 50
"""Draws that are made, and held, before they are looked at."""


@dataclass(frozen=True)
class JointDraw:
    """One draw of all latents together. Densities are in nats, of everything."""

    latents: dict[str, Tensor]
    observed: dict[str, Tensor]
    """By site; those in the plate of the observations have it in front."""
    log_prior: float
    log_guide: float
    """log p(z) and log q(z)."""
    log_likelihood: dict[str, Tensor]
    """By observed site, (observations,) where it is in their plate, else one number."""
    log_priors: dict[str, Tensor]
    """The same by latent site."""
    free: dict[str, Tensor] = field(default_factory=dict)
    """Coordinates u of the latents, z = ``biject_to(support)(u)``, in the shapes of their sites; empty unless
    asked for."""
    prior: dict[str, Tensor] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)
    """Latents drawn from the prior, and data drawn anew given ``latents``; empty unless asked for."""

    @property
    def log_weight(self) -> float:
        """log p(x, z) − log q(z)."""
        return self.log_prior + self.reconstruction - self.log_guide

    @property
    def reconstruction(self) -> float:
        """log p(x | z)."""
        return sum(float(value.sum()) for value in self.log_likelihood.values())


def joint_pair(candidates: Iterator[Pair], *, predictive: bool = False) -> Pair:
    """The first candidate that runs on all of the data at once.

    Raises
    ------
    Exception
        The program's own, if none does.
    """
    last: Exception = ValueError("there is no way to run the pair")
    for candidate in candidates:
        pair = replace(candidate, layout="rows", whole=True)
        try:
            next(joint_draws(pair, 1, 0, predictive=predictive))
        except Exception as error:
            last = error
        else:
            return pair
    raise last


def joint_draws(
    pair: Pair,
    draws: int,
    seed: int,
    *,
    predictive: bool = False,
    coordinates: bool = False,
    progress: bool = False,
) -> Iterator[JointDraw]:
    """Draws from the guide, one run of the pair on all of the data for each: any program can do that."""
    with progress_bar(draws, "joint draws", enabled=progress) as show:
        for start in range(0, draws, AT_ONCE):
            with pair.evaluation(seed, start):
                found = [
                    _read(pair, predictive=predictive, coordinates=coordinates)
                    for _ in range(min(AT_ONCE, draws - start))
                ]
            yield from found
            show(start + len(found), "")


def _read(pair: Pair, *, predictive: bool, coordinates: bool) -> JointDraw:
    args = pair.tensors
    guide_trace = pair.run_guide(args, 1)
    model_trace = pair.run_model(args, 1, given=guide_trace, discrete=enumerated if pair.summed else None)
    guide_sites, latents, observed = paired_sites(guide_trace, model_trace, pair.summed)
    real = {name: site for name, site in observed.items() if not site_is_factor(site)}
    if pair.summed:
        densities = _summed(pair, model_trace, [*latents, *observed])
    else:
        densities = {name: _by_observation(s, pair.plate) for name, s in (latents | observed).items()}
    found = JointDraw(
        latents={
            name: in_front(guide_sites[name], site["value"], pair.plate) for name, site in latents.items()
        },
        observed={name: in_front(site, site["value"], pair.plate) for name, site in real.items()},
        log_prior=sum(float(densities[name].sum()) for name in latents),
        log_guide=sum(float(_log_prob(site).sum()) for site in guide_sites.values()),
        log_likelihood={name: densities[name] for name in observed},
        log_priors={name: densities[name] for name in latents},
        free=joint_coordinates(latents) if coordinates else {},
    )
    if not predictive:
        return found
    if pair.summed:
        guide_trace = pair.with_discrete(args, 1, guide_trace)
        discrete = {name: guide_trace.nodes[name] for name in sorted(pair.summed)}
        latents |= discrete
        drawn = {name: in_front(site, site["value"], pair.plate) for name, site in discrete.items()}
        found = replace(found, latents=found.latents | drawn)
    given = pair.run_model(args, 1, given=guide_trace, free=True).nodes
    alone = pair.run_model(args, 1, free=True).nodes
    return replace(
        found,
        prior={name: in_front(alone[name], alone[name]["value"], pair.plate) for name in latents},
        replicates={name: in_front(given[name], given[name]["value"], pair.plate) for name in real},
    )


def _summed(pair: Pair, trace: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Densities given the sites before, with enumerated latents summed out: of each observation where they
    are, else of all together."""

    def apart(term: Tensor) -> Tensor:
        """What belongs to nobody in front of what belongs to each observation."""
        if term.dim() >= -pair.plate.dim and term.shape[pair.plate.dim] == pair.observations:
            each = term.detach().to("cpu", torch.float64).movedim(pair.plate.dim, 0)
            return torch.cat([each.new_zeros(1), each.flatten(1).sum(1) if each.dim() > 1 else each])
        shared = term.detach().to("cpu", torch.float64).sum()
        return torch.cat([shared.reshape(1), shared.new_zeros(pair.observations)])

    found = by_chain_rule(trace, pair.summed, names, apart)
    local = {name: in_data_plate(trace.nodes[name], pair.plate) for name in names}
    return {name: v[1:] if local[name] and not v[0] else v.sum() for name, v in found.items()}


def joint_coordinates(latents: Mapping[str, Any]) -> dict[str, Tensor]:
    """Coordinates on the reals of the values of some sites, on the CPU in float64. Raises PairError if one is
    discrete."""
    free = {}
    for name, site in latents.items():
        try:
            transform = biject_to(site["fn"].support)
        except NotImplementedError as error:
            raise PairError(
                f"latent '{name}' has no real coordinates (its support is {site['fn'].support}); marginalize "
                "it in the model"
            ) from error
        free[name] = transform.inv(site["value"]).detach().to("cpu", torch.float64)
    return free


def in_front(site: Any, value: Tensor, plate: DataPlate) -> Tensor:
    """A site's value on the CPU, with the observation first if it is in their plate."""
    value = value.detach().cpu()
    if not in_data_plate(site, plate) or value.dim() - site["fn"].event_dim < -plate.dim:
        return value
    return value.movedim(value.dim() - site["fn"].event_dim + plate.dim, 0)


def _log_prob(site: Any) -> Tensor:
    density: Tensor = scale_and_mask(exact_log_prob(site["fn"], site["value"]), mask=site["mask"])
    return density.detach().to("cpu", torch.float64)


def _by_observation(site: Any, plate: DataPlate) -> Tensor:
    density = _log_prob(site)
    if not in_data_plate(site, plate) or density.dim() < -plate.dim:
        return density.sum()
    return density.movedim(plate.dim, 0).flatten(1).sum(1) if density.dim() > 1 else density


def joint_log_weights(pair: Pair, draws: int, seed: int, *, progress: bool) -> xr.DataArray:
    """Log weights over ``draw``."""
    values = [draw.log_weight for draw in joint_draws(pair, draws, seed, progress=progress)]
    attrs = {"seed": seed} | attributes(*NAMES["log_weight"])
    return xr.DataArray(np.array(values), {"draw": np.arange(draws)}, ("draw",), "log_weight", attrs)


def diagnose_joint(pair: Pair, draws: int, seed: int, *, progress: bool) -> xr.Dataset:
    """What ``diagnose`` says of the joint posterior: numbers without a dimension, in nats for all data."""
    weight, kl, latent_dim = np.empty((1, draws)), np.empty(draws), 0
    for i, draw in enumerate(joint_draws(pair, draws, seed, progress=progress)):
        weight[0, i], kl[i] = draw.log_weight, draw.log_guide - draw.log_prior
        latent_dim = sum(value.numel() for value in draw.latents.values())
    khat = pareto_khat(weight)
    total = np.logaddexp.reduce(weight[0]) - np.log(draws)
    found = {
        "elbo": weight.mean(),
        "log_evidence": total,
        "log_evidence_se": evidence_error(weight, khat)[0],
        "khat": khat[0],
        "ess": effective_draws(weight)[0],
        "kl": kl.mean(),
        "reconstruction": weight.mean() + kl.mean(),
    }
    attrs = {"draws": draws, "seed": seed, "latent_dim": latent_dim, "khat_threshold": khat_threshold(draws)}
    return named(xr.Dataset({name: float(value) for name, value in found.items()}, attrs=attrs))


def joint_groups(
    pair: Pair, draws: int, seed: int, names: Sequence[str], *, progress: bool
) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, list[str]]]:
    """What goes into an ArviZ tree, (1, draws, ...) by group and site, and the dimensions of each site."""
    groups: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in names}
    for i, draw in enumerate(joint_draws(pair, draws, seed, predictive=True, progress=progress)):
        parts: dict[str, Mapping[str, Any]] = {
            "posterior": draw.latents,
            "prior": draw.prior,
            "posterior_predictive": draw.replicates,
            "log_likelihood": draw.log_likelihood,
            "log_prior": draw.log_priors,
            "sample_stats": {"log_p": draw.log_prior + draw.reconstruction, "log_q": draw.log_guide},
        }
        for group, values in parts.items():
            for site, value in values.items():
                array = np.asarray(value)
                into = groups[group].setdefault(site, np.empty((1, draws, *array.shape), array.dtype))
                into[0, i] = array
        groups["observed_data"] = {site: value.numpy() for site, value in draw.observed.items()}
    with pair.evaluation(seed):
        sites = sample_sites(pair.run_model(pair.tensors, 1))
    local = {name: in_data_plate(site, pair.plate) for name, site in sites.items()}
    shapes = {name: value.shape[2:] for name, value in groups["posterior"].items()}
    seen = {name: value.shape for name, value in groups["observed_data"].items()}
    shared = {name for name, inside in local.items() if not inside}
    dims = site_dims({name: shape[local[name] :] for name, shape in shapes.items()}, "latent", shared)
    dims |= site_dims({name: shape[local[name] :] for name, shape in seen.items()}, "feature", shared)
    factors = {name for name in groups["log_likelihood"] if name not in dims}
    return groups, dims | {name: ["observation"] if local[name] else [] for name in factors}
