"""The posterior of each observation on the reals, where proposals and chains can move freely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_vae.batches.rows import Rows
from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.density import CHUNK, LocalDensity
from pyro_vae.guides.refining.steps import Normals, Refinement, refined_normals
from pyro_vae.posterior.drawing import Pair
from pyro_vae.posterior.sites import PairError

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class UnconstrainedPosterior:
    """p(z | x) of some observations up to its constant, in coordinates u with z = ``biject_to(support)(u)``.

    The model runs as it is, with these latents in the place of its draws; the Jacobian is exact, also where
    one latent's support depends on another latent.
    """

    pair: Pair
    """Of these observations, or of all if they must go through together."""
    rows: NDArray[np.int64]
    """Which observations of the pair."""
    shapes: Mapping[str, torch.Size]
    """Of one value of each latent, in the order in which their coordinates lie side by side."""
    sizes: Mapping[str, int]
    """Coordinates by latent."""
    everywhere: bool
    """Whether every latent is real, and so its own coordinates."""
    dtype: torch.dtype
    """Of the latents in the model."""
    local: LocalDensity
    """The density of every observation of the pair."""

    @classmethod
    def of(
        cls,
        pair: Pair,
        rows: NDArray[np.int64],
        values: Draws,
        chunk: int = CHUNK,
        graphs: Graphs | None = None,
    ) -> tuple[UnconstrainedPosterior, Tensor]:
        """The posterior of these observations, and draws of theirs (draws, len(rows), ...) as coordinates.

        ``graphs`` are those of the densities of other observations of the same model.

        Raises
        ------
        PairError
            If a latent is discrete.
        """
        if not pair.whole:
            pair = replace(pair, args=_chosen(pair.args, rows))
            rows = np.arange(len(rows))
        first = next(iter(values.values()))
        shapes = {site: value.shape[2:] for site, value in values.items()}
        density = LocalDensity(pair.model, {}, (), {}, rows=pair.observations)
        posterior = cls(pair, rows, shapes, {}, False, first.dtype, density)
        one = posterior._placed_free({site: value[:1] for site, value in values.items()}, chunk)
        sizes = {site: coordinates.shape[-1] for site, coordinates in one.items()}
        density = LocalDensity(
            pair.model, sizes, pair.tensors, {}, rows=pair.observations, chunk=chunk, graphs=graphs
        )
        everywhere = all(torch.equal(one[site], _flat(values[site][:1]).to(one[site])) for site in sizes)
        posterior = replace(posterior, sizes=sizes, local=density, everywhere=everywhere)
        with posterior.evaluation():
            density.settle(posterior._spread(torch.cat(list(one.values()), dim=-1))[0])
        return posterior, posterior.coordinates(values)

    @property
    def size(self) -> int:
        """Coordinates of one observation."""
        return sum(self.sizes.values())

    def part(self, rows: NDArray[np.int64]) -> UnconstrainedPosterior:
        """That of some of these observations, counted from 0."""
        return replace(self, rows=self.rows[rows])

    def coordinates(self, values: Draws) -> Tensor:
        """Of draws by site (draws, observations, ...): (draws, observations, size)."""
        if self.everywhere:
            parts = {site: _flat(value).double() for site, value in values.items()}
        else:
            parts = self._placed_free(values, self.local.chunk)
        return torch.cat([parts[site] for site in self.sizes], dim=-1)

    def values(self, free: Tensor) -> Draws:
        """The latents at coordinates (draws, observations, size), by site (draws, observations, ...)."""
        by_site = dict(zip(self.sizes, free.split(list(self.sizes.values()), dim=-1), strict=True))
        if self.everywhere:
            return {
                site: part.to(self.dtype).reshape(*part.shape[:2], *self.shapes[site])
                for site, part in by_site.items()
            }
        parts = []
        with self.pair.evaluation(0):
            for start in range(0, len(free), self._draws_at_once):
                given = {site: part[start : start + self._draws_at_once] for site, part in by_site.items()}
                placement, trace = self._place(given, real=True)
                parts.append({site: placement.value(trace, site) for site in self.sizes})
        return {site: torch.cat([part[site] for part in parts]) for site in self.sizes}

    def log_density(self, free: Tensor) -> Tensor:
        """log p(x, z) + log |dz/du| at coordinates, in nats, (draws, observations): unnormalized."""
        with self.evaluation(draws=len(free)):
            return self.local(self._as_seen(free), self._places).double().cpu()

    def value_and_gradient(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The density at coordinates, and its gradient with respect to them."""
        with self.evaluation(draws=len(free)):
            return self.within(free)

    def within(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`value_and_gradient`, for many calls within one :meth:`evaluation`."""
        value, gradient = self.local.with_gradient(self._as_seen(free), self._places)
        return value.double().cpu(), gradient.double().cpu()

    def refined(self, loc: Tensor, tril: Tensor, *, steps: int, stop: float) -> Refinement:
        """Normals by natural-gradient steps from these (observations, size), (observations, size, size), or
        from standard deviations (observations, size)."""
        start = Normals(self._as_seen(loc), self._as_seen(tril))
        with self.evaluation(draws=2 * self.size):
            found = refined_normals(self.local, start, steps=steps, stop=stop, rows=self._places)
        normals = Normals(*(part.double().cpu() for part in found.normals))
        elbo, before = found.elbo.double().cpu(), found.elbo_before.double().cpu()
        return Refinement(normals, elbo, before, found.converged.cpu())

    def from_prior(self, draws: int, *key: int) -> Tensor:
        """Coordinates of draws from the model's prior, (draws, observations, size)."""
        rows, parts = torch.from_numpy(self.rows), []
        for start in range(0, draws, self._draws_at_once):
            count = min(self._draws_at_once, draws - start)
            with self.pair.evaluation(*key, start, rows=count * self.pair.observations):
                nodes = self.pair.run_model(self.pair.tensors, count, free=True).nodes
            values = {
                site: self.pair.value(nodes[site], count, self.pair.observations) for site in self.sizes
            }
            parts.append(self.coordinates({site: value[:, rows] for site, value in values.items()}))
        return torch.cat(parts)

    @contextmanager
    def evaluation(self, *key: int, draws: int = 1) -> Iterator[None]:
        """The density can be computed for so many draws of each observation at once: the model's parameters
        are in place, and nothing outside moves."""
        rows = min(draws * len(self.rows), self.local.chunk)
        with (
            self.pair.evaluation(*(key or (0,)), rows=rows),
            pyro.get_param_store().scope(self.pair.model_state),
        ):
            yield

    @property
    def _places(self) -> Tensor:
        return torch.from_numpy(self.rows).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.pair.args[0].device

    def _as_seen(self, free: Tensor) -> Tensor:
        return free.to(self._device, self.dtype)

    @property
    def _draws_at_once(self) -> int:
        return max(1, self.local.chunk // self.pair.observations)

    def _placed_free(self, values: Draws, chunk: int) -> Draws:
        """Coordinates of draws by site, through the model: a support may depend on what it draws before."""
        first = next(iter(values.values()))
        step, parts = max(1, chunk // self.pair.observations), []
        with self.pair.evaluation(0):
            for start in range(0, len(first), step):
                given = {site: value[start : start + step] for site, value in values.items()}
                parts.append(self._place(given, real=False)[0].free)
        return {site: torch.cat([part[site] for part in parts]) for site in parts[0]}

    def _place(self, given: Draws, *, real: bool) -> tuple[_Placement, Any]:
        """One run of the model with these latents."""
        pair, rows = self.pair, self.rows
        if not pair.whole:
            pair, rows = replace(pair, args=_chosen(pair.args, rows)), np.arange(len(rows))
        count = len(next(iter(given.values())))
        spread = {site: self._spread(value) for site, value in given.items()}
        placement = _Placement(pair, count, rows, spread, real=real)
        return placement, pair.run_model(pair.tensors, count, placement=placement)

    def _spread(self, value: Tensor) -> Tensor:
        """To the model's device and dtype and, if all observations go through together, to all of them."""
        there = self._as_seen(value)
        if not self.pair.whole:
            return there
        n, rows = self.pair.observations, torch.from_numpy(self.rows).to(self._device)
        return there.new_zeros(len(value), n, *value.shape[2:]).index_copy(1, rows, there)


class _Placement(Messenger):
    """Gives the latents their values, from the values themselves or from their coordinates."""

    def __init__(self, pair: Pair, count: int, rows: NDArray[np.int64], given: Draws, *, real: bool) -> None:
        super().__init__()
        self.pair, self.count, self.given, self.real = pair, count, given, real
        self.rows = torch.from_numpy(rows)
        self.free: Draws = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.given or msg["is_observed"]:
            return
        transform = _to_support(fn.support, name)
        shape = fn.batch_shape + fn.event_shape
        if self.real:
            free = self._behind(self.given[name], transform.inverse_shape(shape), fn)
            msg["value"] = transform(free)
        else:
            msg["value"] = self._behind(self.given[name], shape, fn)
            self.free[name] = self._in_front(msg, transform.inv(msg["value"]))[:, self.rows]

    def value(self, trace: Any, name: str) -> Tensor:
        """The values of a site, with draw and observation in front."""
        return self.pair.value(trace.nodes[name], self.count, self.pair.observations)[:, self.rows]

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
        front = self.pair.draws_first(msg, tensor, self.count, rows).to("cpu", torch.float64)
        return front.reshape(self.count, rows, -1)


def _flat(values: Tensor) -> Tensor:
    """(draws, observations, numbers)."""
    return values.reshape(*values.shape[:2], -1)


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
