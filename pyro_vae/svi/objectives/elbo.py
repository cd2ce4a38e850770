"""The evidence lower bound of a Pyro pair as one tensor: the same estimator as Pyro's, without leaving the
device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro.distributions.delta import Delta
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.arguments import brief, positive_integer
from pyro_vae.pairs.isolation import Program
from pyro_vae.pairs.running import run_pair

Site = Mapping[str, Any]


class Estimate(NamedTuple):
    """One evaluation of an objective on one batch; totals in nats, as Pyro reports them (plates' scales
    applied)."""

    loss: Tensor
    """What is minimized; report this. For the ELBO it is ``kl_weight * kl - reconstruction``; bounds of
    several draws are below that."""
    surrogate: Tensor
    """Differentiate this: its gradient is an unbiased estimate of the gradient of the expected loss."""
    kl: Tensor
    """KL(q(z|x) ‖ p(z)), unweighted."""
    reconstruction: Tensor
    """E_q log p(x|z)."""


@runtime_checkable
class Objective(Protocol):
    """What :func:`~pyro_vae.svi.fitting.fit` minimizes: :class:`ELBO`, and whatever has its two methods."""

    def weight_at(self, step: int) -> float:
        """The weight of the KL at a step."""

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective for the batch ``args``."""


@dataclass(frozen=True)
class ELBO:
    r"""The negative evidence lower bound, :math:`w\,\mathrm{KL}(q(z|x)\,\|\,p(z)) - \mathbb{E}_q \log
    p(x|z)`.

    With ``kl_weight=1`` the loss and its gradient are those of Pyro's ``TraceMeanField_ELBO``
    (``analytic_kl=True``) or ``Trace_ELBO`` (``analytic_kl=False``) under the same random stream. The
    analytic KL is used where it is right and sampling elsewhere: a site whose KL has no closed form, a site
    that Pyro's autoguides express by a Delta (whose registered KL leaves out the Jacobian), and a site whose
    prior depends on a latent that the guide draws only later.

    Parameters
    ----------
    num_particles
        Monte Carlo draws of all latents per step, at least 1.
    analytic_kl
        Use closed-form KLs.
    kl_weight
        A number ≥ 0, or a function of the step (0, 1, …) for warm-up: ``lambda step: min(1.0, step / 1000)``.

    Raises
    ------
    ValueError
        If ``num_particles`` is not a positive integer or ``kl_weight`` is negative.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes. Wingate and Weber (2013), Automated
    Variational Inference in Probabilistic Programming (the score-function term for latents without a
    reparameterization).

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
    >>> estimate = ELBO().estimate(model, guide, (torch.zeros(1),))
    >>> round(float(estimate.kl), 4)  # log √2 − 1/4
    0.0966
    """

    num_particles: int = 1
    analytic_kl: bool = True
    kl_weight: float | Callable[[int], float] = 1.0

    def __post_init__(self) -> None:
        positive_integer("num_particles", self.num_particles)
        if not isinstance(self.analytic_kl, bool):
            raise ValueError(f"analytic_kl is {self.analytic_kl!r}; give True or False")
        if not callable(self.kl_weight):
            checked_weight(self.kl_weight, "kl_weight")

    def weight_at(self, step: int) -> float:
        """The weight of the KL at a step."""
        if callable(self.kl_weight):
            return checked_weight(self.kl_weight(step), f"kl_weight({step})")
        return float(self.kl_weight)

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective for the batch ``args``; ``kl_weight`` overrides the field, so that a
        graph can vary it."""
        return average([self._particle(model, guide, args, kl_weight) for _ in range(self.num_particles)])

    def _particle(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float
    ) -> Estimate:
        model_trace, guide_trace = run_pair(model, guide, args)
        analytic = _analytic_kls(model_trace, guide_trace) if self.analytic_kl else {}
        return elbo_estimate(model_trace, guide_trace, kl_weight, analytic)


def elbo_estimate(
    model_trace: Trace,
    guide_trace: Trace,
    kl_weight: Tensor | float,
    analytic: Mapping[str, Tensor],
) -> Estimate:
    """The negative ELBO of one draw; ``analytic`` holds the total KL of the sites for which it is not to be
    sampled."""
    log_likelihood: Tensor | float = 0.0
    kl: Tensor | float = sum(analytic.values()) if analytic else 0.0
    kl_surrogate = kl
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or name in analytic:
            continue
        if site["is_observed"]:
            log_likelihood = log_likelihood + site["log_prob_sum"]
        else:
            kl = kl - site["log_prob_sum"]
            kl_surrogate = kl_surrogate - site["log_prob_sum"]
    score: Tensor | float = 0.0
    log_r: MultiFrameTensor | None = None
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample" or name in analytic:
            continue
        kl = kl + site["log_prob_sum"]
        _, score_function, entropy = site["score_parts"]
        if not is_identically_zero(entropy):
            kl_surrogate = kl_surrogate + entropy.sum()
        if not is_identically_zero(score_function):
            log_r = _log_ratio(model_trace, guide_trace, kl_weight) if log_r is None else log_r
            score = score + (log_r.sum_to(site["cond_indep_stack"]) * score_function).sum()
    loss = kl_weight * kl - log_likelihood
    surrogate = kl_weight * kl_surrogate - log_likelihood - score
    like = loss if torch.is_tensor(loss) else torch.zeros(())
    return Estimate(
        *(
            torch.as_tensor(v, dtype=like.dtype, device=like.device)
            for v in (loss, surrogate, kl, log_likelihood)
        )
    )


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several draws."""
    if len(estimates) == 1:
        return estimates[0]
    return Estimate(*(torch.stack(terms).mean(0) for terms in zip(*estimates, strict=True)))


def checked_weight(weight: float, name: str) -> float:
    """A weight of the KL, or a ValueError."""
    if isinstance(weight, bool) or not isinstance(weight, Real | Tensor) or not 0 <= weight < float("inf"):
        raise ValueError(f"{name} is {brief(weight)}; give a finite number of at least 0")
    return float(weight)


def _latents(trace: Trace, among: Trace) -> list[str]:
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name in among.nodes
    ]


def _analytic_kls(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    """Total KL by site, for the sites where a closed form exists and equals the sampled KL in expectation.

    KL(q_i ‖ p_i) integrates over latent i with every other latent held fixed, so it is wrong where p_i
    depends on a latent that the guide draws after i. Without the dependencies, the order tells: every latent
    before i in the model must be before i in the guide.
    """
    in_guide = _latents(guide_trace, model_trace)
    kls: dict[str, Tensor] = {}
    before_in_model: set[str] = set()
    for name in _latents(model_trace, guide_trace):
        drawn = set(in_guide[: in_guide.index(name)])
        guide_site: Site = guide_trace.nodes[name]
        prior: Any = model_trace.nodes[name]["fn"]
        posterior: Any = guide_site["fn"]
        if before_in_model <= drawn and posterior.has_rsample and not is_delta(posterior):
            try:
                kl = scale_and_mask(kl_divergence(posterior, prior), guide_site["scale"], guide_site["mask"])
            except NotImplementedError:
                pass
            else:
                kls[name] = kl.sum()
        before_in_model.add(name)
    return kls


def is_delta(distribution: Any) -> bool:
    """Whether a distribution is a point, as autoguides use it for what another site drew."""
    while hasattr(distribution, "base_dist") and not isinstance(distribution, Delta):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def _log_ratio(model_trace: Trace, guide_trace: Trace, kl_weight: Tensor | float) -> MultiFrameTensor:
    """log p(x|z) + w (log p(z) − log q(z|x)) by plate: what multiplies the score of a latent that has no
    reparameterization."""
    ratio = MultiFrameTensor()
    stacks = get_plate_stacks(model_trace)
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        term = site["log_prob"]
        if not site["is_observed"]:
            term = kl_weight * (term - guide_trace.nodes[name]["log_prob"])
        ratio.add((stacks[name], term.detach()))
    return ratio
