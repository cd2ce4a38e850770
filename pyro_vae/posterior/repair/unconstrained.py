"""The posterior of each observation on the reals, where proposals and chains can move freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyro_vae.batches.rows import Rows
from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.density import CHUNK, LocalDensity
from pyro_vae.guides.refining.placement import placed_values, read_coordinates, rows_in_front
from pyro_vae.guides.refining.steps import Normals, Refinement, refined_normals
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.evaluation.sites import PairError

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class UnconstrainedPosterior:
    """p(z | x) of some observations up to its constant, in coordinates u with z = ``biject_to(support)(u)``.

    The density is a :class:`~pyro_vae.guides.refining.density.LocalDensity`; here are its rows, and the ways
    from latents to coordinates and back. Everything but :meth:`of` is for use within :meth:`evaluation`.
    """

    pair: Pair
    """Of these observations, or of all if they must go through together."""
    rows: NDArray[np.int64]
    """Which observations of the pair."""
    shapes: Mapping[str, torch.Size]
    """Of one value of each latent, in the order in which their coordinates lie side by side."""
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

        ``graphs`` are those of the densities of other observations of the same model. Raises PairError if a
        latent is discrete."""
        if not pair.whole:
            pair = replace(pair, args=_chosen(pair.args, rows))
            rows = np.arange(len(rows))
        n, args = pair.observations, pair.tensors
        first = next(iter(values.values()))
        shapes = {site: value.shape[2:] for site, value in values.items()}
        bare = LocalDensity(pair.model, {}, (), {}, rows=n, dim=pair.plate.dim, chunk=chunk)
        posterior = cls(pair, rows, shapes, False, first.dtype, bare)
        with posterior.evaluation():
            one = posterior._coordinates({site: value[:1] for site, value in values.items()})
            sizes = {site: coordinates.shape[-1] for site, coordinates in one.items()}
            density = LocalDensity(
                pair.model, sizes, args, {}, rows=n, dim=pair.plate.dim, chunk=chunk, graphs=graphs
            )
            everywhere = all(torch.equal(one[site], _flat(values[site][:1]).to(one[site])) for site in sizes)
            posterior = replace(posterior, local=density, everywhere=everywhere)
            density.settle(posterior._spread(torch.cat(list(one.values()), dim=-1)[0]))
            return posterior, posterior.coordinates(values)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Coordinates by latent."""
        return self.local.sizes

    @property
    def size(self) -> int:
        """Coordinates of one observation."""
        return self.local.size

    def part(self, rows: NDArray[np.int64]) -> UnconstrainedPosterior:
        """That of some of these observations, counted from 0."""
        return replace(self, rows=self.rows[rows])

    def coordinates(self, values: Draws) -> Tensor:
        """Of draws by site (draws, observations, ...): (draws, observations, size)."""
        if self.everywhere:
            parts = {site: _flat(value).double() for site, value in values.items()}
        else:
            parts = self._coordinates(values)
        return torch.cat([parts[site] for site in self.sizes], dim=-1)

    def values(self, free: Tensor) -> Draws:
        """The latents at coordinates (draws, observations, size), by site (draws, observations, ...)."""
        by_site = dict(zip(self.sizes, free.split(list(self.sizes.values()), dim=-1), strict=True))
        if not self.everywhere:
            by_site = self._by_rows(placed_values, by_site)
        return {
            site: part.to("cpu", self.dtype).reshape(*part.shape[:2], *self.shapes[site])
            for site, part in by_site.items()
        }

    def log_density(self, free: Tensor) -> Tensor:
        """log p(x, z) + log |dz/du| at coordinates, in nats, (draws, observations): unnormalized."""
        return self.local(self._as_seen(free), self._places).double().cpu()

    def value_and_gradient(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The density at coordinates, and its gradient with respect to them."""
        value, gradient = self.local.with_gradient(self._as_seen(free), self._places)
        return value.double().cpu(), gradient.double().cpu()

    def refined(self, loc: Tensor, tril: Tensor, *, steps: int, stop: float) -> Refinement:
        """Normals by natural-gradient steps from these (observations, size), (observations, size, size), or
        from standard deviations (observations, size)."""
        start = Normals(self._as_seen(loc), self._as_seen(tril))
        found = refined_normals(self.local, start, steps=steps, stop=stop, rows=self._places)
        normals = Normals(*(part.double().cpu() for part in found.normals))
        elbo, before = found.elbo.double().cpu(), found.elbo_before.double().cpu()
        return Refinement(normals, elbo, before, found.converged.cpu())

    def from_prior(self, draws: int) -> Tensor:
        """Coordinates of draws from the model's prior, (draws, observations, size)."""

        def drawn(model: Callable[..., Any], given: Draws, args: Any, _: Any, dim: int) -> Draws:
            count = len(next(iter(given.values())))
            with poutine.block():
                sites: dict[str, Any] = poutine.trace(model).get_trace(*args).nodes
            return {site: rows_in_front(sites[site], sites[site]["value"], count, dim) for site in self.sizes}

        places = {"place": torch.zeros(draws, len(self.rows), 1)}
        return self.coordinates(self._by_rows(drawn, places))

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

    def _coordinates(self, values: Draws) -> Draws:
        """By site, through the model: a support may depend on what it draws before."""
        try:
            found = self._by_rows(read_coordinates, values)
        except ValueError as error:
            if " has no real coordinates " in str(error):
                raise PairError(str(error)) from error
            raise
        return {site: _flat(part).double().cpu() for site, part in found.items()}

    def _by_rows(self, run: Callable[..., Draws], given: Draws) -> Draws:
        """Run the model on (draws, observations, ...) by site, a row for each pair of the two, as many at
        once as the density takes; all observations together where they must be."""
        draws, n = next(iter(given.values())).shape[:2]
        args, step = self.pair.tensors, self.local.chunk
        if self.pair.whole or self.local.whole:
            parts = [
                self._run(run, {site: self._spread(part[i]) for site, part in given.items()}, args)
                for i in range(draws)
            ]
            return {site: torch.stack([part[site][self._places] for part in parts]) for site in parts[0]}
        flat = {site: self._as_seen(part).flatten(0, 1) for site, part in given.items()}
        parts = [
            self._run(run, {site: part[i] for site, part in flat.items()}, tuple(arg[index] for arg in args))
            for i, index in _slices(self._places.repeat(draws), step)
        ]
        joined = {site: torch.cat([part[site] for part in parts]) for site in parts[0]}
        return {site: part.unflatten(0, (draws, n)) for site, part in joined.items()}

    def _run(self, run: Callable[..., Draws], given: Draws, args: tuple[Tensor, ...]) -> Draws:
        with making_tensors_on(self._device):
            return run(self.pair.model, given, args, {}, self.pair.plate.dim)

    def _spread(self, value: Tensor) -> Tensor:
        """Of one draw (observations, ...), to all observations if they go through together."""
        there = self._as_seen(value)
        if len(self.rows) == self.pair.observations and (np.diff(self.rows) == 1).all():
            return there
        return there.new_zeros(self.pair.observations, *there.shape[1:]).index_copy(0, self._places, there)


def _slices(index: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(index), size):
        part = slice(start, start + size)
        yield part, index[part]


def _flat(values: Tensor) -> Tensor:
    """(draws, observations, numbers)."""
    return values.reshape(*values.shape[:2], -1)


def _chosen(args: tuple[Rows, ...], rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
    return tuple(arg[torch.from_numpy(rows)] for arg in args)
