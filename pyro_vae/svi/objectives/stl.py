"""The ELBO with the path derivative alone: a gradient that has no noise where the guide is right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_vae.pairs.isolation import Program
from pyro_vae.pairs.running import run_pair
from pyro_vae.svi.objectives.elbo import ELBO, Estimate, average, elbo_estimate, is_delta


@dataclass(frozen=True)
class STL:
    r"""The negative ELBO, differentiated along the path of the draw only ("sticking the landing").

    The KL is sampled. Its gradient with respect to the guide's parameters φ has two parts,

    .. math::
        \frac{\mathrm{d}}{\mathrm{d}\phi} \log q_\phi(z(\phi)) =
        \frac{\partial \log q_\phi}{\partial z} \frac{\partial z}{\partial \phi} +
        \frac{\partial \log q_\phi(z)}{\partial \phi},

    and the second, the score, has mean zero: it is left out. What remains is unbiased, and exactly zero at
    every draw once q is the posterior. Latents without a reparameterization keep the score-function
    estimator. Where one latent's distribution depends on another's draw, that dependence counts as a
    parameter, as where implementations detach the parameters of each distribution: the gradient stays
    unbiased, but some of its noise remains at the posterior.

    Parameters
    ----------
    num_particles
        Monte Carlo draws of all latents per step, at least 1.
    kl_weight
        As for :class:`~pyro_vae.svi.ELBO`.

    Raises
    ------
    ValueError
        If ``num_particles`` is not a positive integer or ``kl_weight`` is negative.

    References
    ----------
    Roeder, Wu and Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
    Variational Inference.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> loc = torch.tensor(1.0, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(loc, 0.5**0.5))
    >>> surrogate = STL().estimate(model, guide, (torch.tensor([2.0]),)).surrogate
    >>> abs(float(torch.autograd.grad(surrogate, loc)[0])) < 1e-6  # the posterior of x = 2 is N(1, 1/2)
    True
    """

    num_particles: int = 1
    kl_weight: float | Callable[[int], float] = 1.0

    def __post_init__(self) -> None:
        ELBO(self.num_particles, kl_weight=self.kl_weight)

    def weight_at(self, step: int) -> float:
        """The weight of the KL at a step."""
        return ELBO(kl_weight=self.kl_weight).weight_at(step)

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective for the batch ``args``; ``kl_weight`` overrides the field."""
        return average([_particle(model, guide, args, kl_weight) for _ in range(self.num_particles)])


def _particle(model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float) -> Estimate:
    model_trace, guide_trace = run_pair(model, guide, args)
    sampled = elbo_estimate(model_trace, guide_trace, kl_weight, {})
    return sampled._replace(surrogate=sampled.surrogate - kl_weight * _score(guide_trace))


def _score(guide_trace: Trace) -> Tensor | float:
    """log q of the detached draws: its gradient is the part of d log q that does not go through the draw.

    Not of a Delta, whose density is a function of what another site drew (an autoguide's Jacobian), and so
    part of the path.
    """
    score: Tensor | float = 0.0
    for site in guide_trace.nodes.values():
        if site["type"] == "sample":
            posterior: Any = site["fn"]
            draw: Any = site["value"]
            if posterior.has_rsample and not is_delta(posterior):
                log_prob = posterior.log_prob(draw.detach())
                score = score + torch.as_tensor(scale_and_mask(log_prob, site["scale"], site["mask"])).sum()
    return score
