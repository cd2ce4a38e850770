"""A Normal of its own for each observation of some data, by steps from a guide's output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import brief, check_numbers, check_programs, require_count
from pyro_vae.batches.rows import Rows
from pyro_vae.guides.refined import (
    STEPS,
    STOP,
    Covariance,
    NormalsGuide,
    as_parameters,
    check_refinement,
)
from pyro_vae.guides.refining.density import CHUNK
from pyro_vae.guides.refining.steps import Normals, Refinement
from pyro_vae.posterior.evaluation.preparation import prepare
from pyro_vae.posterior.refined.dispersion import (
    elsewhere_attrs,
)
from pyro_vae.posterior.refined.rows import Latents, refine_rows
from pyro_vae.progress import progress_bar


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
    needs_data = False

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


@torch.inference_mode(mode=False)
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
        raise ValueError(f"dtype is {brief(dtype)}; give torch.float32 or torch.float64")
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


def _keys(data: Sequence[Any]) -> list[bytes]:
    """A digest of each observation."""
    arrays = [part[:].detach().cpu().numpy() for part in data]
    return [
        hashlib.blake2b(b"".join(array[i].tobytes() for array in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]
