"""Refine a pair that is ready, block by block, with the density at hand for what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.latents.plates import ObservationPlate
from pyro_vae.guides.latents.sites import LocalSite
from pyro_vae.guides.refined import STEPS, STOP, Covariance, local_sites
from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.density import CHUNK, LocalDensity
from pyro_vae.guides.refining.start import starting_normals
from pyro_vae.guides.refining.steps import POINTS, Refinement, refined_normals
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.refined.dispersion import Elsewhere, refined_from_elsewhere, sample_of

Latents = tuple[tuple[LocalSite, ...], ObservationPlate]


class RefinedRows(NamedTuple):
    """Some observations, refined."""

    observations: slice
    """Which ones."""
    latents: Latents
    """Of the model, and their plate."""
    density: LocalDensity
    """Their log p(x, u), for use within :func:`evaluating_model`."""
    refinement: Refinement
    """What the steps came to."""
    elsewhere: Elsewhere
    """What dispersed starts found for those that were to be started from elsewhere, too."""

    @property
    def latent_dim(self) -> int:
        """Numbers in the latents of an observation."""
        return sum(site.numbers for site in self.latents[0])


def refine_rows(
    pair: Pair,
    *,
    steps: int = STEPS,
    stop: float = STOP,
    covariance: Covariance = "full",
    seed: int = 0,
    chunk: int = CHUNK,
    dispersed: int = 0,
) -> Iterator[RefinedRows]:
    """Refine the observations of a pair that is ready, as many at a time as the memory is bounded to."""
    store, graphs = pyro.get_param_store(), Graphs()
    some = _rows(pair, slice(0, None if pair.whole else 2))
    with evaluating_model(pair, seed), making_tensors_on(some[0].device):
        latents = local_sites(pair.model, some, {})
    sizes = {site.name: site.size for site in latents[0]}
    rows = pair.observations if pair.whole else max(1, POINTS // (2 * sum(sizes.values())))
    chosen = sample_of(pair.observations, dispersed, seed)
    for start in range(0, pair.observations, rows):
        block = slice(start, min(start + rows, pair.observations))
        args = _rows(pair, block)
        with pair.evaluation(seed, start, rows=min(chunk, len(args[0]) * 2 * sum(sizes.values()))):
            with store.scope(pair.guide_state), making_tensors_on(args[0].device):
                begin = starting_normals(pair.guide, latents[0], args, {}, full=covariance == "full")
            with store.scope(pair.model_state):
                density = LocalDensity(
                    *(pair.model, sizes, args, {}),
                    rows=len(begin.loc),
                    dim=latents[1].dim,
                    chunk=chunk,
                    graphs=graphs,
                )
                density.settle(begin.loc)
                refinement = refined_normals(density, begin, steps=steps, stop=stop)
                looked_at = chosen[(chosen >= start) & (chosen < block.stop)] - start
                refinement, elsewhere = refined_from_elsewhere(
                    *(pair, args, density, refinement, torch.from_numpy(looked_at).to(begin.loc.device)),
                    steps=steps,
                    stop=stop,
                )
        yield RefinedRows(block, latents, density, refinement, elsewhere)


def _rows(pair: Pair, block: slice) -> tuple[Tensor, ...]:
    return tuple(arg[block] for arg in pair.args)


@contextmanager
def evaluating_model(pair: Pair, seed: int = 0, *, rows: int | None = None) -> Iterator[None]:
    """The model of a pair can be run, as in ``Pair.evaluation``; its parameters are in place, too."""
    with pair.evaluation(seed, rows=rows), pyro.get_param_store().scope(pair.model_state):
        yield
