"""Bounds on the log evidence from several draws of the guide: Rényi's, of which the importance-weighted
autoencoder's is one."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import is_identically_zero
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.arguments import positive_integer
from pyro_vae.pairs.isolation import Program
from pyro_vae.pairs.running import run_pair
from pyro_vae.svi.objectives.elbo import Estimate


@dataclass(frozen=True)
class Renyi:
    r"""The negative variational Rényi bound, per observation.

    .. math::
        -\sum_n \frac{1}{1-\alpha} \log \frac1K \sum_{k=1}^K w_{nk}^{1-\alpha}, \qquad
        w_{nk} = \frac{p(x_n, z_{nk})}{q(z_{nk}|x_n)}, \quad z_{nk} \sim q(z|x_n)

    α = 0 is the importance-weighted bound :class:`IWAE`, α = 1 the ELBO (with sampled KL), α < 0 an upper
    bound as K grows. The mean over draws is inside each plate that all sites share; a latent outside of the
    plate (a global one) makes one joint weight of all observations. Where a plate subsamples, the bound of an
    observation is rescaled, not its weight: the loss is an unbiased estimate of that on all data. (Pyro's
    ``RenyiELBO``, which this equals elsewhere, raises the weights to the power N/B.)

    The terms that are reported, KL and reconstruction, are those of the ELBO on the same draws; the loss is
    below their difference.

    Parameters
    ----------
    alpha
        The order α, any finite number.
    num_particles
        Draws K per observation, at least 1.

    Raises
    ------
    ValueError
        If ``alpha`` is not finite or ``num_particles`` not a positive integer.

    References
    ----------
    Li and Turner (2016), Rényi Divergence Variational Inference.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> loss = Renyi(0.5, 4).estimate(model, guide, (torch.zeros(1),)).loss
    >>> round(float(loss), 4)  # the guide is exact, so every draw gives the evidence: log √(4π)
    1.2655
    """

    alpha: float
    num_particles: int

    def __post_init__(self) -> None:
        positive_integer("num_particles", self.num_particles)
        number = isinstance(self.alpha, Real) and not isinstance(self.alpha, bool)
        if not number or not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha!r}; give a finite number")

    def weight_at(self, step: int) -> float:  # noqa: ARG002
        """1: the bound is one at full weight of the KL only."""
        return 1.0

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the bound for the batch ``args``; ``kl_weight`` tempers p(z)/q(z|x) in the weights."""
        particles = [_particle(model, guide, args) for _ in range(self.num_particles)]
        log_weights = torch.stack([p.reconstruction - kl_weight * p.kl for p in particles])
        bound = self._bound(log_weights)
        # d/dφ E[f] = E[df/dφ + f · d log q/dφ] for the latents without a reparameterization.
        scores = [p.score for p in particles if torch.is_tensor(p.score)]
        surrogate = bound + bound.detach() * sum(scores) if scores else bound
        scale = particles[0].scale
        return Estimate(
            loss=-scale * bound.sum(),
            surrogate=-scale * surrogate.sum(),
            kl=scale * torch.stack([p.kl.sum() for p in particles]).mean(),
            reconstruction=scale * torch.stack([p.reconstruction.sum() for p in particles]).mean(),
        )

    def _bound(self, log_weights: Tensor) -> Tensor:
        order = 1.0 - self.alpha
        if order == 0:
            return log_weights.mean(0)
        bound: Tensor = (torch.logsumexp(order * log_weights, 0) - math.log(self.num_particles)) / order
        return bound


@dataclass(frozen=True, init=False)
class IWAE(Renyi):
    r"""The negative bound of the importance-weighted autoencoder, :math:`-\sum_n \log \frac1K \sum_k w_{nk}`.

    :class:`Renyi` with α = 0: it rises with K from the ELBO to the log evidence. What it teaches the guide
    weakens as K grows (Rainforth et al., 2018), so prefer few draws for training.

    Parameters
    ----------
    num_particles
        Draws K per observation, at least 1.

    Raises
    ------
    ValueError
        If ``num_particles`` is not a positive integer.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders. Rainforth, Kosiorek, Le,
    Maddison, Igl, Wood and Teh (2018), Tighter Variational Bounds are Not Necessarily Better.

    Examples
    --------
    >>> IWAE(8)
    IWAE(num_particles=8)
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(0.0, num_particles)

    def __repr__(self) -> str:
        return f"IWAE(num_particles={self.num_particles})"


class _Particle(NamedTuple):
    """One draw; log q − log p(z), log p(x|z) and what carries the score, one number for each observation."""

    kl: Tensor
    reconstruction: Tensor
    score: Tensor | float
    scale: float


def _particle(model: Program, guide: Program, args: tuple[Any, ...]) -> _Particle:
    model_trace, guide_trace = run_pair(model, guide, args)
    dims, scale = _shared_plates(model_trace, guide_trace)
    kl = reconstruction = torch.zeros(())
    score: Tensor | float = 0.0
    for site in model_trace.nodes.values():
        if site["type"] == "sample":
            term = _sum_to(site["log_prob"], dims) / scale
            if site["is_observed"]:
                reconstruction = reconstruction.to(term) + term
            else:
                kl = kl.to(term) - term
    for site in guide_trace.nodes.values():
        if site["type"] == "sample":
            kl = kl + _sum_to(site["log_prob"], dims) / scale
            score_function = site["score_parts"][1]
            if not is_identically_zero(score_function):
                score = score + _sum_to(score_function, dims) / scale
    return _Particle(kl, reconstruction, score, scale)


def _shared_plates(model_trace: Trace, guide_trace: Trace) -> tuple[set[int], float]:
    """The dims of the plates that hold every site, and how much these rescale for subsampling.

    A joint draw of the guide for all observations makes their weights one, however the model sees them.
    """
    stacks = [
        {(frame.dim, frame.size): (frame.full_size or frame.size) / frame.size for frame in plates}
        for trace in (model_trace, guide_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for plates in [[frame for frame in site["cond_indep_stack"] if frame.vectorized]]
    ]
    shared = set.intersection(*map(set, stacks)) if stacks else set()
    scale = math.prod(stacks[0][plate] for plate in shared)
    return {dim for dim, _ in shared if dim is not None}, scale


def _sum_to(term: Tensor, dims: set[int]) -> Tensor:
    """Sums over every dim but those."""
    others = [dim for dim in range(-term.dim(), 0) if dim not in dims]
    return term.sum(others, keepdim=True) if others else term
