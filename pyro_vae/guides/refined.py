"""A guide that begins where another one ends, and climbs the model's own density for each observation."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.arguments import brief, check_programs, kind
from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.guides.families import DIAGONAL, FULL, Family
from pyro_vae.guides.latents.finding import find_latents
from pyro_vae.guides.latents.plates import ObservationPlate, call_signature
from pyro_vae.guides.latents.sites import LocalSite
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.density import LocalDensity
from pyro_vae.guides.refining.placement import evaluating
from pyro_vae.guides.refining.start import starting_normals
from pyro_vae.guides.refining.steps import Normals, Refinement, refined_normals

logger = logging.getLogger(__name__)

Covariance = Literal["full", "diagonal"]
STEPS, STOP = 12, 0.1
COVARIANCES: dict[str, Family] = {"full": FULL, "diagonal": DIAGONAL}

OUTSIDE = (
    "Refinement is of latents of one observation each: fix the others at a draw and hide them, "
    "poutine.block(poutine.condition(model, data={'w': draw}), hide=['w'])."
)
DISCRETE = "and refinement moves continuous latents only: marginalize it in the model"


class NormalsGuide(LocalGuide):
    """Base of the guides whose Normals come from refinement."""

    def __init__(self, model: Callable[..., Any], covariance: Covariance) -> None:
        super().__init__(model)
        self.covariance: Covariance = covariance

    @property
    def family(self) -> Family:  # type: ignore[override]
        return COVARIANCES[self.covariance]

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        return f"covariance={self.covariance!r}"


class Refined(NormalsGuide):
    r"""Another guide's Normal for each observation, refined by a few steps on the model's own density.

    An encoder's error is often larger than its posteriors are wide: k̂ is bad, intervals cover too little, the
    evidence is too low. This guide asks the encoder where to begin and then climbs, without sampling and
    without parameters of its own: natural-gradient steps of a Normal with full covariance, from gradients of
    log p(x, z) at 2D cubature points, inside a trust region, for those observations only that still gain
    (see :mod:`pyro_vae.guides.refining.steps`). By the cubature rule no observation ends with a lower ELBO
    than it began with.

    It is a guide as any other: a Pyro program, with :meth:`posterior`, :meth:`get_posterior`, :meth:`median`
    and :meth:`quantiles`. Each call refines anew; :func:`pyro_vae.refine` does it once for given data. The
    guide that it wraps and the random stream stay as they are, and no gradient flows back into either
    program.

    Parameters
    ----------
    guide
        Where to begin: an encoder guide, a guide with ``get_posterior``, any Pyro program that draws the
        latents.
    model
        The model, where the guide does not know it. Latents outside of the plate of the observations must be
        fixed and hidden: ``poutine.block(poutine.condition(model, data={"w": draw}), hide=["w"])``.
    steps
        The most to take. Each takes 2D gradients for an observation that still moves.
    stop
        In nats. An observation's last step is the first that promises to gain less.
    covariance
        ``"full"``, or ``"diagonal"`` for the best independent Normals, as an ``AmortizedNormal`` has them.

    Attributes
    ----------
    refinement
        Of the last call, for each observation: ``converged``, ``elbo`` and ``elbo_before`` (nats, by the
        cubature rule), ``normals``. None before.

    Raises
    ------
    TypeError
        If ``guide`` is no program, or no model is known.
    ValueError
        In a call: if a latent is discrete or shared by all observations, or the guide has no mean and spread.

    Notes
    -----
    A Normal has one mode: where a posterior has several, refinement finds the one that the guide points to
    (:func:`pyro_vae.refine` looks for others from elsewhere). The sum of steps and the matrices grow with the
    latent dimension D: 2D gradients and D³ operations per step and observation.

    References
    ----------
    Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited. Kim, Wiseman, Miller,
    Sontag and Rush (2018), Semi-Amortized Variational Autoencoders. Marino, Yue and Mandt (2018), Iterative
    Amortized Inference.

    Examples
    --------
    >>> from pyro_vae.guides import AmortizedNormal
    >>> from pyro_vae.models import PPCA
    >>> model = PPCA(torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.zeros(3), 0.5)
    >>> x = torch.tensor([[1.0, 0.0, 2.0]])
    >>> guide = Refined(AmortizedNormal(model, torch.nn.Linear(3, 8)))  # not trained at all
    >>> torch.allclose(guide.posterior(x).mean, model.posterior(x).mean, atol=1e-4)
    True
    >>> guide.refinement.converged
    tensor([True])
    """

    def __init__(
        self,
        guide: Callable[..., Any],
        *,
        model: Callable[..., Any] | None = None,
        steps: int = STEPS,
        stop: float = STOP,
        covariance: Covariance = "full",
    ) -> None:
        check_programs(guide=guide)
        check_refinement(steps, stop, covariance)
        super().__init__(_model_of(guide) if model is None else model, covariance)
        self.steps, self.stop = steps, stop
        self.refinement: Refinement | None = None
        self._graphs = Graphs()
        # Not as an attribute: that would rename the parameters of a PyroModule, which has a life of its own.
        self._modules["guide"] = guide if isinstance(guide, nn.Module) else None
        self._program = None if isinstance(guide, nn.Module) else guide

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        return f"steps={self.steps}, stop={self.stop:g}, {super().extra_repr()}"

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def local_parameters(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The refined Normals' parameters: ``loc``, ``log_scale`` and, with full covariance, ``tril``."""
        device = next((x.device for x in (*args, *kwargs.values()) if torch.is_tensor(x)), None)
        with forked_streams(), making_tensors_on(device), poutine.block():
            if not self.sites:
                self.sites, plate = local_sites(self.model, args, kwargs)
                self._plates_seen[plate.batch_size, call_signature((args, kwargs))] = plate
            begin = self._begin(args, kwargs)
            density = LocalDensity(
                self.model,
                {site.name: site.size for site in self.sites},
                args,
                kwargs,
                rows=len(begin.loc),
                dim=self.sites[0].observation_dim,
                graphs=self._graphs,
            )
            density.settle(begin.loc)
            self.refinement = refined_normals(density, begin, steps=self.steps, stop=self.stop)
        left = int((~self.refinement.converged).sum())
        if left:
            logger.info(
                "%d of %d observations would still gain %g nats or more by a step; give more than steps=%d",
                *(left, len(begin.loc), self.stop, self.steps),
            )
        return as_parameters(self.refinement.normals)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Normals:
        guide: Any = self._program or self._modules["guide"]
        with evaluating(guide):
            return starting_normals(guide, self.sites, args, kwargs, full=self.covariance == "full")

    def __getstate__(self) -> dict[str, Any]:
        # Graphs hold the tensors of this very model; a refinement is of the last call.
        return {**super().__getstate__(), "_graphs": Graphs(), "refinement": None}


def as_parameters(normals: Normals) -> dict[str, Tensor]:
    """Normals with Cholesky factors as the parameters of their family."""
    loc, factor = normals
    if factor.dim() == 2:
        return {"loc": loc, "log_scale": factor.log()}
    scale = factor.diagonal(dim1=-2, dim2=-1)
    parameters = {"loc": loc, "log_scale": scale.log()}
    if loc.shape[-1] > 1:
        rows, columns = torch.tril_indices(loc.shape[-1], loc.shape[-1], -1, device=loc.device)
        parameters["tril"] = factor[..., rows, columns] / scale[..., rows]
    return parameters


def local_sites(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[LocalSite, ...], ObservationPlate]:
    """The latents to refine, or an error that says why there are none."""
    rows = next((len(x) for x in (*args, *kwargs.values()) if torch.is_tensor(x) and x.dim()), None)
    found = find_latents(
        model, args, kwargs, rows=rows, enumerates=False, outside=OUTSIDE, discrete=DISCRETE
    ).without_shared(OUTSIDE)
    masked = next((site.name for site in found.sites if site.masked), None)
    if masked is not None:
        raise ValueError(
            f"latent '{masked}' is masked, so that it has no posterior where it is hidden, and refinement "
            "needs one of each observation; leave those observations out of the data"
        )
    return found.sites, found.plate


def check_refinement(steps: Any, stop: Any, covariance: Any) -> None:
    """Raise a ValueError that names the first argument that cannot be used."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {brief(steps)}; give a positive integer, and 12 is a good number")
    if isinstance(stop, bool) or not isinstance(stop, int | float) or not 0 < stop < float("inf"):
        raise ValueError(f"stop is {brief(stop)}; give a positive number of nats, such as 0.1")
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance is {brief(covariance)}; give 'full' or 'diagonal'")


def _model_of(guide: Any) -> Callable[..., Any]:
    try:
        model: Any = getattr(guide, "model", None)
    except AttributeError:
        model = None
    if not callable(model):
        raise TypeError(f"guide is {kind(guide)}, which does not know its model; give model=")
    return model  # type: ignore[no-any-return]
