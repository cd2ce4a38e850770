"""Any ELBO of Pyro as an objective of ``fit``."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from pyro import infer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.pairs.isolation import Program
from pyro_vae.svi.objectives.elbo import ELBO, Estimate, Objective


@dataclass(frozen=True)
class PyroELBO:
    """An ELBO of Pyro: ``Trace_ELBO``, ``TraceEnum_ELBO``, ``TraceGraph_ELBO``, ``RenyiELBO``, …

    ``fit`` makes one of these where ``objective`` is an ELBO of Pyro, so that enumerated latents (mixtures,
    hidden Markov models, semi-supervised models) can be fitted. The loss and its gradients are those of its
    ``loss_and_grads``. It does not tell the KL from the reconstruction, which are NaN.

    Parameters
    ----------
    elbo
        Of Pyro.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0), obs=x)
    >>> estimate = PyroELBO(Trace_ELBO()).estimate(model, lambda x: None, (torch.zeros(2),))
    >>> round(float(estimate.loss), 4)  # log 2π
    1.8379
    """

    elbo: Any

    def weight_at(self, step: int) -> float:
        """Always 1: Pyro's ELBOs know no weight of the KL."""
        del step
        return 1.0

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective for the batch ``args``."""
        del kl_weight
        device = next((arg.device for arg in args if torch.is_tensor(arg)), None)
        with making_tensors_on(device):
            self._look_for_plates(model, guide, args)
            with _WithoutNumbers() as found:
                loss = self.elbo.loss_and_grads(model, guide, *args)
        value = torch.as_tensor(loss, dtype=torch.get_default_dtype() if isinstance(loss, float) else None)
        surrogate = value if found.surrogate is None else found.surrogate  # nothing to move, or no gradients
        unknown = torch.full_like(surrogate, math.nan).detach()
        return Estimate(value.to(surrogate.dtype), surrogate, unknown, unknown)

    def _look_for_plates(self, model: Program, guide: Program, args: tuple[Any, ...]) -> None:
        """Pyro runs the pair once to count plates, if nobody told it; that must not move the stream."""
        counts = self.elbo.vectorize_particles or isinstance(
            self.elbo, infer.TraceEnum_ELBO | infer.TraceTMC_ELBO
        )
        if counts and self.elbo.max_plate_nesting == math.inf:
            with forked_streams():
                self.elbo._guess_max_plate_nesting(model, guide, args, {})


def as_objective(objective: Any) -> Objective:
    """What is asked for as an objective: ours as it is, Pyro's ELBOs wrapped, and ``ELBO()`` for None."""
    if objective is None:
        return ELBO()
    if isinstance(objective, infer.ReweightedWakeSleep | infer.TraceTailAdaptive_ELBO):
        raise TypeError(
            f"objective is {type(objective).__name__}, which has no single loss to follow; take its steps by "
            "pyro_vae.SVI, which gives Pyro's numbers"
        )
    return PyroELBO(objective) if isinstance(objective, infer.ELBO) else objective


class _WithoutNumbers(TorchFunctionMode):
    """Pyro's estimators make the loss a number and differentiate it; here it stays a tensor, and what they
    would differentiate is handed over."""

    def __init__(self) -> None:
        super().__init__()
        self.surrogate: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        caller = sys._getframe(1).f_code.co_filename.replace("\\", "/")
        if func is Tensor.backward:
            self.surrogate = args[0] if self.surrogate is None else self.surrogate + args[0]
            return None
        if func is Tensor.item and "/pyro/infer/" in caller:
            return args[0].detach().clone()
        if func is Tensor.__bool__ and caller.endswith("/pyro/util.py"):
            return False  # it asks for NaN to warn of it, and fits judge that themselves
        if func is Tensor.__bool__ and sys._getframe(1).f_code.co_name == "compute_expectation":
            return True  # whether every probability is positive, which only saves work
        return func(*args, **(kwargs or {}))
