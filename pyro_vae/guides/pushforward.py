"""A Delta that keeps its Jacobian when an ELBO asks for its KL divergence."""

from typing import Any

from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.distribution import Distribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform, register_kl


class PushforwardDelta(Delta):
    r"""The value :math:`v = T(u)` of an auxiliary draw :math:`u \sim q`, with :math:`-\log|\det T'(u)|` as
    its log density.

    Pyro's autoguides draw every latent once in unconstrained space and put the constrained value into the
    trace as a Delta whose ``log_density`` is the Jacobian. ``kl_divergence`` of Pyro's own ``Delta`` leaves
    the log density out, so ``TraceMeanField_ELBO`` optimizes the wrong objective on every constrained site.
    This class differs in that divergence only: :math:`\log q(v) - \log p(v)`, which is what ``Trace_ELBO``
    computes.
    """


@register_kl(PushforwardDelta, Distribution)  # type: ignore[untyped-decorator]
def _kl_pushforward(p: PushforwardDelta, q: Distribution) -> Tensor:
    return p.log_density - q.log_prob(p.v)  # type: ignore[no-any-return]


def push_forward(transform: Transform, unconstrained: Tensor, event_dim: int) -> PushforwardDelta:
    """The point ``transform(unconstrained)`` with its Jacobian, ``event_dim`` being that of the value."""
    value = transform(unconstrained)
    log_density: Tensor | float = 0.0
    if poutine.get_mask() is not False:
        jacobian = transform.log_abs_det_jacobian(unconstrained, value)
        log_density = -sum_rightmost(jacobian, jacobian.dim() - value.dim() + event_dim)
    return PushforwardDelta(value, log_density, event_dim)  # type: ignore[no-untyped-call]


class PushforwardMessenger(Messenger):
    """Turns each Delta that a guide samples into a :class:`PushforwardDelta`."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if type(fn) is Delta:
            msg["fn"] = PushforwardDelta(fn.v, fn.log_density, fn.event_dim)  # type: ignore[no-untyped-call]
