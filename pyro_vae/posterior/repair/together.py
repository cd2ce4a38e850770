"""A model whose observations share latents, as a model of one observation: everything together.

Its only latent are the coordinates u of all latents of the user's model side by side, its only observation is
all of the data. What is written for the posteriors of single observations then serves the joint posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import factor, plate, poutine, sample
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    constraints,
)

from pyro_vae.guides.precision import exact_log_prob
from pyro_vae.guides.refining.steps import Normals
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import PairError, drawn_sites, in_data_plate, sample_sites
from pyro_vae.posterior.joint import in_front, joint_coordinates, joint_draws

MOST_COORDINATES = 1000
"""Of all latents together: a covariance of them is kept, and twice as many gradients make a step."""

SITE = "all"


@dataclass(frozen=True)
class Together:
    """All latents of a pair that is ready on all of its data."""

    pair: Pair
    shapes: Mapping[str, torch.Size]
    """Of each latent's coordinates, in the model's order."""
    shared: tuple[str, ...]
    """Latents outside of the plate of the observations."""
    free: Tensor
    """Coordinates of the guide's draws, (draws, 1, D)."""
    log_weight: Tensor
    """Of these draws, (1, draws)."""

    @classmethod
    def of(cls, pair: Pair, draws: int, seed: int) -> Together:
        """The guide's draws, and where they lie. Raises PairError if a latent is discrete, or there are too
        many numbers in them."""
        if pair.summed:
            raise PairError(
                f"latent '{min(pair.summed)}' is discrete, and all observations share latents; marginalize "
                "it in the model"
            )
        found = list(joint_draws(pair, draws, seed, coordinates=True))
        shapes = {name: value.shape for name, value in found[0].free.items()}
        size = sum(shape.numel() for shape in shapes.values())
        if size > MOST_COORDINATES:
            raise PairError(
                f"the latents of all observations together are {size} numbers, because they share some; at "
                f"most {MOST_COORDINATES} are repaired: fix the shared ones at a draw and hide them, "
                "poutine.block(poutine.condition(model, data={'w': draw}), hide=['w']), or ask "
                "reference_posterior"
            )
        with pair.evaluation(seed):
            sites = sample_sites(pair.run_model(pair.tensors, 1))
        shared = tuple(name for name in shapes if not in_data_plate(sites[name], pair.plate))
        dtype = next(iter(found[0].latents.values())).dtype
        free = torch.stack([torch.cat([u.flatten() for u in draw.free.values()]) for draw in found]).to(dtype)
        weights = torch.tensor([[draw.log_weight for draw in found]], dtype=torch.float64)
        return cls(pair, shapes, shared, free[:, None], weights)

    @property
    def one(self) -> Pair:
        """A pair with one observation, whose latent is everything."""
        row = self.free.new_zeros(1).to(self.pair.tensors[0].device)
        flops = self.pair.flops * self.pair.observations
        alone = replace(self.pair, model=self.model, guide=_no_guide, args=(row,), flops=flops)
        return replace(alone, whole=False, layout="rows")

    def model(self, rows: Tensor) -> None:
        """The joint density of everything, for as many points as there are rows."""
        points = plate("points", len(rows))
        with points:
            free = sample(SITE, _Everything(self, len(rows)))
        total = self.log_density(free)  # outside: the user's plates are at the same dims
        with points:
            factor("joint", total)

    def log_density(self, free: Tensor) -> Tensor:
        """log p(x, z(u)) + log |dz/du| at points (points, D), in nats."""
        try:
            with poutine.block():
                found: Tensor = torch.vmap(self._log_joint, randomness="different")(free)
        except (RuntimeError, ValueError, TypeError):  # what a program does that cannot be batched
            with poutine.block():
                found = torch.stack([self._log_joint(point) for point in free])
        return found

    def values(self, free: Tensor) -> dict[str, Tensor]:
        """The latents at coordinates (draws, 1, D), by site: (draws, ...), those of an observation with it in
        front."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.shapes}
        with self.pair.evaluation(0):
            for point in free[:, 0].to(self.pair.tensors[0].device):
                trace = self.pair.run_model(self.pair.tensors, 1, placement=_Placement(self._by_site(point)))
                for name, part in parts.items():
                    site = trace.nodes[name]
                    part.append(in_front(site, site["value"], self.pair.plate))
        return {name: torch.stack(part) for name, part in parts.items()}

    def normals(self) -> Normals | None:
        """What the guide draws the coordinates from, if that is independent Normals (1, D), or one with full
        covariance (1, D, D); None if it is anything else."""
        traces = []
        for seed in range(2):
            with self.pair.evaluation(seed):
                guide_trace = self.pair.run_guide(self.pair.tensors, 1)
                sites = sample_sites(self.pair.run_model(self.pair.tensors, 1, given=guide_trace))
            known = joint_coordinates({name: sites[name] for name in self.shapes})
            value = torch.cat([part.flatten() for part in known.values()])
            drawn = {
                n: s["fn"] for n, s in drawn_sites(guide_trace).items() if not isinstance(s["fn"], Delta)
            }
            free = {f"{name}_unconstrained": name for name in self.shapes}  # AutoNormal's
            if drawn.keys() == self.shapes.keys():
                parts = [_normal(drawn[name], sites[name]["fn"].support) for name in self.shapes]
            elif drawn.keys() == free.keys():
                apart = [guide_trace.nodes[own]["value"].to(value).flatten() for own in free]
                same = torch.allclose(torch.cat(apart), value, atol=1e-4)
                parts = [_normal(drawn[own], drawn[own].support) if same else None for own in free]
            elif len(drawn) == 1:  # an autoguide's: everything else is a function of it
                ((name, fn),) = drawn.items()
                same = torch.allclose(guide_trace.nodes[name]["value"].to(value).flatten(), value, atol=1e-4)
                parts = [_normal(fn, fn.support) if same else None]
            else:
                return None
            normals = [part for part in parts if part is not None]
            if len(normals) < len(parts) or (len(parts) > 1 and any(f.dim() == 2 for _, f in normals)):
                return None
            traces.append(Normals(*(torch.cat(column)[None] for column in zip(*normals, strict=True))))
        one, other = traces
        return one if all(map(torch.equal, one, other)) else None

    def from_prior(self) -> Tensor:
        """Coordinates of a draw from the model's prior, (D)."""
        with poutine.block():
            sites = sample_sites(poutine.trace(self.pair.model).get_trace(*self.pair.tensors))
        free = joint_coordinates({name: sites[name] for name in self.shapes})
        return torch.cat([part.flatten() for part in free.values()])

    def _by_site(self, point: Tensor) -> dict[str, Tensor]:
        parts = point.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}

    def _log_joint(self, point: Tensor) -> Tensor:
        placement = _Placement(self._by_site(point))
        trace = poutine.trace(placement(self.pair.model)).get_trace(*self.pair.tensors)
        total = sum(placement.log_jacobian, point.new_zeros(()))
        for site in sample_sites(trace).values():
            total = total + scale_and_mask(exact_log_prob(site["fn"], site["value"]), mask=site["mask"]).sum()
        return total


def _normal(distribution: Any, support: Any) -> Normals | None:
    """Of one site, (D) and (D) or (D, D), if it is a Normal in the coordinates of its support."""
    base, maps = distribution, list[Any]()
    while isinstance(base, Independent | TransformedDistribution):
        maps = [*getattr(base, "transforms", []), *maps]
        base = base.base_dist
    if isinstance(base, LowRankMultivariateNormal):
        base = MultivariateNormal(base.loc, base.covariance_matrix)
    if not isinstance(base, MultivariateNormal | Normal):
        return None
    value = base.loc
    for transform in maps:
        value = transform(value)
    free = biject_to(support).inv(value)
    if free.shape != base.loc.shape or not torch.allclose(free, base.loc, rtol=1e-3, atol=1e-3):
        return None
    loc = base.loc.detach().flatten().double().cpu()
    if isinstance(base, Normal):
        return Normals(loc, base.scale.detach().expand_as(base.loc).flatten().double().cpu())
    return Normals(loc, base.scale_tril.detach().double().cpu()) if base.loc.dim() == 1 else None


class _Placement(Messenger):
    """Gives latents the values at these coordinates, and keeps log |dz/du|."""

    def __init__(self, free: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.free, self.log_jacobian = free, list[Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.free and not msg["is_observed"]:
            transform, free = biject_to(msg["fn"].support), self.free[msg["name"]]
            msg["value"] = transform(free)
            self.log_jacobian.append(transform.log_abs_det_jacobian(free, msg["value"]).sum())


class _Everything(TorchDistribution):
    """Draws from the prior of everything; its density is left to the factor beside it."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's own name and type
    support = constraints.real_vector

    def __init__(self, together: Together, rows: int) -> None:
        self.together = together
        size = together.free.shape[-1]
        super().__init__(torch.Size([rows]), torch.Size([size]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Everything:
        """With a row for each point."""
        return _Everything(self.together, *batch_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: ARG002, B008  # torch's signature
        """From the prior, one run of the model for each row."""
        return torch.stack([self.together.from_prior() for _ in range(self.batch_shape[0])])

    def log_prob(self, value: Tensor) -> Tensor:
        """Nothing."""
        return value.new_zeros(value.shape[:-1])


def _no_guide(rows: Tensor) -> None:
    """Its draws are known."""
