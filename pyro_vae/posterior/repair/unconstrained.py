"""The posterior of each observation on the reals, where proposals and chains can move freely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_vae.batches.batches import Rows
from pyro_vae.posterior.drawing import CHUNK, Pair, PairError, sample_sites

__all__ = ["Points", "UnconstrainedPosterior"]

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Points:
    """Latents in both forms, and their density.

    Attributes
    ----------
    free
        Real coordinates u, (draws, observations, size), float64.
    values
        The latents z, by site, (draws, observations, ...).
    log_density
        log p(x, z) + log |dz/du| in nats, (draws, observations): on the reals, unnormalized.
    """

    free: Tensor
    values: Draws
    log_density: Tensor


@dataclass(frozen=True)
class UnconstrainedPosterior:
    """p(z | x) of some observations up to its constant, in coordinates u with z = ``biject_to(support)(u)``.

    The model runs as it is, with these latents in the place of its draws; the Jacobian is exact, also where
    one latent's support depends on another latent.
    """

    pair: Pair
    rows: NDArray[np.int64]
    """Which observations of the pair."""
    sizes: Mapping[str, int]
    """Coordinates by site, in the order in which they lie side by side."""
    dtype: torch.dtype
    """Of the latents in the model."""
    chunk: int

    @classmethod
    def of(
        cls, pair: Pair, rows: NDArray[np.int64], values: Draws, chunk: int = CHUNK
    ) -> tuple[UnconstrainedPosterior, Tensor]:
        """The posterior of these observations, and draws of theirs (draws, len(rows), ...) as coordinates.

        Raises
        ------
        PairError
            If a latent is discrete.
        """
        if not pair.whole:
            pair = replace(pair, args=_chosen(pair.args, rows))
            rows = np.arange(len(rows))
        posterior = cls(pair, rows, {}, next(iter(values.values())).dtype, chunk)
        free = posterior._free(values)
        sizes = {site: coordinates.shape[-1] for site, coordinates in free.items()}
        return replace(posterior, sizes=sizes), torch.cat(list(free.values()), dim=-1)

    def coordinates(self, values: Draws) -> Tensor:
        """Of draws by site (draws, observations, ...): (draws, observations, size)."""
        free = self._free(values)
        return torch.cat([free[site] for site in self.sizes], dim=-1)

    def from_prior(self, draws: int, *key: int) -> Tensor:
        """Coordinates of draws from the model's prior, (draws, observations, size)."""
        rows, parts = torch.from_numpy(self.rows), []
        for start in range(0, draws, self._draws_at_once):
            count = min(self._draws_at_once, draws - start)
            with self.pair.evaluation(*key, start):
                nodes = self.pair.run_model(self.pair.tensors, count, free=True).nodes
            values = {
                site: self.pair.value(nodes[site], count, self.pair.observations) for site in self.sizes
            }
            parts.append(self.coordinates({site: value[:, rows] for site, value in values.items()}))
        return torch.cat(parts)

    @property
    def size(self) -> int:
        """Coordinates of one observation."""
        return sum(self.sizes.values())

    def part(self, rows: NDArray[np.int64]) -> UnconstrainedPosterior:
        """That of some of these observations, counted from 0."""
        if self.pair.whole:
            return replace(self, rows=self.rows[rows])
        pair = replace(self.pair, args=_chosen(self.pair.args, rows))
        return replace(self, pair=pair, rows=np.arange(len(rows)))

    def at(self, free: Tensor) -> Points:
        """Values and density at coordinates (draws, observations, size)."""
        rows, values, densities = torch.from_numpy(self.rows), [], []
        with self.pair.evaluation(0):
            for part in free.split(self._draws_at_once):
                placement, trace = self._place(self._by_site(part), real=True)
                values.append({site: placement.value(trace, site)[:, rows] for site in self.sizes})
                densities.append(self._density(placement, trace))
        together = {site: torch.cat([value[site] for value in values]) for site in self.sizes}
        return Points(free, together, torch.cat(densities))

    def log_density(self, free: Tensor) -> Tensor:
        """The density alone, differentiable; for use within an evaluation of the pair."""
        return self._density(*self._place(self._by_site(free), real=True))

    def value_and_gradient(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The density (draws, observations) at coordinates, and its gradient with respect to them."""
        values, gradients = [], []
        with self.pair.evaluation(0), torch.enable_grad():
            for part in free.split(self._draws_at_once):
                at = part.detach().requires_grad_()
                log_density = self.log_density(at)
                gradients.append(torch.autograd.grad(log_density.sum(), at)[0])
                values.append(log_density.detach())
        return torch.cat(values), torch.cat(gradients)

    def _free(self, values: Draws) -> Draws:
        """Coordinates of draws, by site."""
        first = next(iter(values.values()))
        step, parts = self._draws_at_once, []
        with self.pair.evaluation(0):
            for start in range(0, len(first), step):
                given = {site: value[start : start + step] for site, value in values.items()}
                parts.append(self._place(given, real=False)[0].free)
        return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}

    @property
    def _draws_at_once(self) -> int:
        return max(1, self.chunk // self.pair.observations)

    def _by_site(self, free: Tensor) -> Draws:
        return dict(zip(self.sizes, free.split(list(self.sizes.values()), dim=-1), strict=True))

    def _place(self, given: Draws, *, real: bool) -> tuple[_Placement, Any]:
        """One run of the model with these latents."""
        count = len(next(iter(given.values())))
        placement = _Placement(self.pair, count, self.rows, self._spread(given), real=real)
        return placement, self.pair.run_model(self.pair.tensors, count, placement=placement)

    def _spread(self, given: Draws) -> Draws:
        """To the model's device and dtype and, if all observations go through together, to all of them."""
        device, n = self.pair.args[0].device, self.pair.observations
        rows = torch.from_numpy(self.rows).to(device)
        spread = {}
        for site, value in given.items():
            there = value.to(device, self.dtype)
            if self.pair.whole:  # the others' densities are not read
                there = there.new_zeros(len(value), n, *value.shape[2:]).index_copy(1, rows, there)
            spread[site] = there
        return spread

    def _density(self, placement: _Placement, trace: Any) -> Tensor:
        count, n = placement.count, self.pair.observations
        sites = [self.pair.log_prob(site, count, n) for site in sample_sites(trace).values()]
        zero = torch.zeros(count, n, dtype=torch.float64, device="cpu")
        total = sum((*sites, *placement.log_jacobian.values()), zero)
        return total[:, torch.from_numpy(self.rows)]


class _Placement(Messenger):
    """Gives the latents their values, from the values themselves or from their coordinates."""

    def __init__(self, pair: Pair, count: int, rows: NDArray[np.int64], given: Draws, *, real: bool) -> None:
        super().__init__()
        self.pair, self.count, self.given, self.real = pair, count, given, real
        self.rows = torch.from_numpy(rows)
        self.free: Draws = {}
        self.log_jacobian: Draws = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.given or msg["is_observed"]:
            return
        transform = _to_support(fn.support, name)
        shape = fn.batch_shape + fn.event_shape
        if self.real:
            free = self._behind(self.given[name], transform.inverse_shape(shape), fn)
            value = transform(free)
        else:
            value = self._behind(self.given[name], shape, fn)
            free = transform.inv(value)
            self.free[name] = self._in_front(msg, free)[:, self.rows]
        self.log_jacobian[name] = self._in_front(msg, transform.log_abs_det_jacobian(free, value)).sum(-1)
        msg["value"] = value

    def value(self, trace: Any, name: str) -> Tensor:
        """The values of a site, with draw and observation in front."""
        return self.pair.value(trace.nodes[name], self.count, self.pair.observations)

    def _behind(self, values: Tensor, shape: torch.Size, fn: Any) -> Tensor:
        """(draws, observations, ...) in the shape that the model has for it: the reverse of ``Pair.lead``."""
        axis = len(fn.batch_shape) - 1
        if self.pair.layout == "rows":
            inner = shape[:axis] + shape[axis + 1 :]
            return values.reshape(-1, *inner).movedim(0, axis)
        inner = shape[1:axis] + shape[axis + 1 :]
        return values.reshape(*values.shape[:2], *inner).movedim(1, axis)

    def _in_front(self, msg: Any, tensor: Tensor) -> Tensor:
        """(draws, observations, numbers) on the CPU in float64."""
        rows = self.pair.observations
        front = self.pair.lead(msg, tensor, self.count, rows).to("cpu", torch.float64)
        return front.reshape(self.count, rows, -1)


def _chosen(args: tuple[Rows, ...], rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
    return tuple(arg[torch.from_numpy(rows)] for arg in args)


def _to_support(support: Any, name: str) -> Transform:
    try:
        transform: Transform = biject_to(support)
    except NotImplementedError as error:
        raise PairError(
            f"latent '{name}' has no real coordinates (its support is {support}); marginalize it in the model"
        ) from error
    return transform
