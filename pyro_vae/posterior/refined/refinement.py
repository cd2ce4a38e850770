"""A Normal of its own for each observation of some data, by steps from a guide's output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import check_numbers, check_programs, require_count
from pyro_vae.batches.batches import Rows
from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.refined import (
    STEPS,
    STOP,
    Covariance,
    NormalsGuide,
    as_parameters,
    check_refinement,
    local_sites,
)
from pyro_vae.guides.refining.density import CHUNK, Graphs, LocalDensity
from pyro_vae.guides.refining.start import starting_normals
from pyro_vae.guides.refining.steps import POINTS, Normals, Refinement, refined_normals
from pyro_vae.guides.sites import LocalSite, ObservationPlate
from pyro_vae.posterior.drawing import Pair
from pyro_vae.posterior.preparation import prepare
from pyro_vae.posterior.refined.dispersion import (
    Elsewhere,
    elsewhere_attrs,
    refined_from_elsewhere,
    sample_of,
)
from pyro_vae.progress import progress_bar

__all__ = ["RefinedPosterior", "RefinedRows", "evaluating_model", "refine", "refine_rows"]

Latents = tuple[tuple[LocalSite, ...], ObservationPlate]


class RefinedPosterior(NormalsGuide):
    """What :func:`refine` returns: a guide for the observations that it was made with, and for no others.

    ``refined(x)`` is a Pyro program, ``refined.posterior()`` the distribution, and every diagnostic takes it
    as a guide together with the same data or some of them.

    Attributes
    ----------
    loc
        Mean of each observation's free coordinates, (n, D).
    scale_tril
        Cholesky factors of the covariances, (n, D, D); with a diagonal covariance the standard deviations,
        (n, D).
    elbo, elbo_before
        In nats, of these Normals and of the guide's own, by the cubature rule, (n,).
    converged
        Whether another step promised less than ``stop`` nats, (n,).
    attrs
        ``dispersed``: how many observations were refined from elsewhere, too; ``elsewhere_share``: of which
        share of these that led to a better optimum; ``elsewhere_nats``: by how much, on average.
    """

    loc: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        covariance: Covariance,
        refinement: Refinement,
        latents: Latents,
        data: tuple[Rows, ...],
    ) -> None:
        super().__init__(model, covariance)
        self.sites, self._plate = latents
        self.data = data
        self._places: dict[bytes, int] = {}
        self.register_buffer("loc", refinement.normals.loc)
        self.register_buffer("scale_tril", refinement.normals.factor)
        self.elbo, self.elbo_before = refinement.elbo, refinement.elbo_before
        self.converged = refinement.converged
        self.attrs: dict[str, float | int] = {}

    def __len__(self) -> int:
        return len(self.loc)

    @property
    def covariance_matrix(self) -> Tensor:
        """Of the free coordinates, (n, D, D)."""
        tril = self.scale_tril if self.scale_tril.dim() == 3 else torch.diag_embed(self.scale_tril)
        return tril @ tril.mT

    def posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution | dict[str, TorchDistribution]:
        """q(z|x), of one latent its distribution, of several a dict; the data need not be given again."""
        return super().posterior(*args, **kwargs)

    def local_parameters(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The parameters of the Normals, of the data that they were made for."""
        normals = Normals(self.loc, self.scale_tril)
        given = (*args, *kwargs.values())
        return as_parameters(normals.rows(self._rows(given)) if given else normals)

    def _rows(self, given: tuple[Any, ...]) -> Tensor:
        """Which of its observations these are, told by their numbers, in whatever precision they come."""
        self._places = self._places or {key: i for i, key in enumerate(_keys(self.data))}
        try:
            if len(given) != len(self.data):
                raise KeyError(len(given))
            like = [part[:1] for part in self.data]
            keys = _keys([new.to(old) for new, old in zip(given, like, strict=True)])
            return torch.tensor([self._places[key] for key in keys], device=self.loc.device)
        except (KeyError, AttributeError):
            raise ValueError(
                f"data is not among the {len(self)} observations that this posterior was refined for; give "
                "the same data, or refine(model, guide, data) for these"
            ) from None

    def _open_plate(
        self,
        rows: int,
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: dict[str, Any],  # noqa: ARG002
    ) -> pyro.plate:
        whole = self._plate.size == self._plate.batch_size
        size = rows if whole else self._plate.size
        return replace(self._plate, size=size, batch_size=rows).open(rows)

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        gain = float((self.elbo - self.elbo_before).mean())
        return (
            f"{len(self)} observations, {int(self.converged.sum())} of them converged, "
            f"ELBO {float(self.elbo.mean()):.4g} nats, {gain:.4g} more than the guide's, "
            f"{super().extra_repr()}"
        )


def refine(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    steps: int = STEPS,
    stop: float = STOP,
    covariance: Covariance = "full",
    dtype: torch.dtype | None = None,
    dispersed: int = 0,
    seed: int = 0,
    chunk: int = CHUNK,
    progress: bool = False,
) -> RefinedPosterior:
    """Refine a guide's Normal for each observation, once, to be used many times.

    A few natural-gradient steps on the model's own density, without sampling, from the guide's output: see
    :class:`pyro_vae.guides.Refined`, which is the same as a guide for any data.

    Parameters
    ----------
    model, guide
        A Pyro pair, as in :func:`~pyro_vae.posterior.importance.diagnose`. The latents are continuous and lie
        in the plate over observations; others are fixed and hidden by
        ``poutine.block(poutine.condition(model, data={"w": draw}), hide=["w"])``.
    data
        A tensor, an array, or a tuple of them for programs of several arguments.
    steps, stop, covariance
        As in :class:`pyro_vae.guides.Refined`: the most steps to take, the last of an observation being the
        first that promises less than ``stop`` nats; ``"full"`` or ``"diagonal"``.
    dtype
        ``torch.float64`` to compute with copies of the two modules in double precision; by default in their
        own.
    dispersed
        How many observations, chosen at random, are refined from elsewhere, too: from draws of the prior and
        from the posterior of another observation. Where that leads to a better optimum, it is taken, and the
        attributes say how often that was so.
    seed
        Of that choice and of those draws, and of the draws that tell the moments of a guide that is none of
        Normals.
    chunk
        How many rows, an observation and a point each, go through the model at once: it bounds the memory.
    progress
        Whether to show a progress bar.

    Returns
    -------
    RefinedPosterior
        A guide for this data, with ``loc``, ``scale_tril``, ``covariance_matrix``, ``elbo``, ``elbo_before``
        and ``converged`` of each observation, and ``attrs``.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.diagnose`; if a latent is discrete or shared by all
        observations, or the guide has no mean and spread.

    References
    ----------
    Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited. Khan and Lin (2017),
    Conjugate-Computation Variational Inference.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x, 0.1))  # wrong in mean and width
    >>> x = torch.tensor([0.0, 2.0])
    >>> refined = refine(model, guide, x)
    >>> refined.posterior().mean.round(decimals=3), refined.posterior().variance
    (tensor([0., 1.]), tensor([0.5000, 0.5000]))
    >>> bool((refined.elbo > refined.elbo_before).all())
    True
    """
    check_programs(model=model, guide=guide)
    check_refinement(steps, stop, covariance)
    check_numbers(seed=seed)
    require_count("dispersed", dispersed, 0)
    require_count("chunk", chunk, 1, "; it counts rows that go through the networks at once")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype is {dtype!r}; give torch.float32 or torch.float64")
    pair = prepare(model, guide, data, dtypes=(dtype,))
    parts = []
    with progress_bar(pair.observations, "refining", enabled=progress) as show:
        for part in refine_rows(
            pair, steps=steps, stop=stop, covariance=covariance, seed=seed, chunk=chunk, dispersed=dispersed
        ):
            parts.append(part)
            show(part.observations.stop, "")
    columns = zip(*(part.refinement[1:] for part in parts), strict=True)
    normals = Normals.joined([part.refinement.normals for part in parts])
    refinement = Refinement(normals, *map(torch.cat, columns))
    refined = RefinedPosterior(model, covariance, refinement, parts[0].latents, pair.args)
    refined.attrs = elsewhere_attrs([part.elsewhere for part in parts])
    return refined


class RefinedRows(NamedTuple):
    """Some observations, refined.

    Attributes
    ----------
    observations
        Which ones.
    latents
        Of the model, and their plate.
    density
        Their log p(x, u), for use within :func:`evaluating_model`.
    refinement
        What the steps came to.
    elsewhere
        What dispersed starts found for those that were to be started from elsewhere, too.
    """

    observations: slice
    latents: Latents
    density: LocalDensity
    refinement: Refinement
    elsewhere: Elsewhere

    @property
    def latent_dim(self) -> int:
        """Numbers in the latents of an observation."""
        return sum(site.event_shape.numel() for site in self.latents[0])


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
        with pair.evaluation(seed, start):
            with store.scope(pair.guide_state), making_tensors_on(args[0].device):
                begin = starting_normals(pair.guide, latents[0], args, {}, full=covariance == "full")
            with store.scope(pair.model_state):
                density = LocalDensity(
                    pair.model, sizes, args, {}, rows=len(begin.loc), chunk=chunk, graphs=graphs
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
def evaluating_model(pair: Pair, seed: int = 0) -> Iterator[None]:
    """The model of a pair can be run: its parameters are in place, and nothing outside moves."""
    with pair.evaluation(seed), pyro.get_param_store().scope(pair.model_state):
        yield


def _keys(data: Sequence[Any]) -> list[bytes]:
    """A digest of each observation."""
    arrays = [part[:].detach().cpu().numpy() for part in data]
    return [
        hashlib.blake2b(b"".join(array[i].tobytes() for array in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]
