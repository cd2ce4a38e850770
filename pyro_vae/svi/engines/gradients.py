"""Compute loss, KL, reconstruction and gradients of a step: by Pyro, or captured as a graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.devices import forked_streams
from pyro_vae.graphs.tracing import capture
from pyro_vae.pairs.isolation import Program, untouched_buffers
from pyro_vae.svi.objectives.elbo import Estimate, Objective


def gradient_step(
    objective: Objective,
    model: Program,
    guide: Program,
    parameters: Sequence[Tensor],
    args: tuple[Any, ...],
    kl_weight: Tensor,
) -> tuple[Tensor, ...]:
    """Loss, KL, reconstruction and the gradient of each parameter (zero where it takes no part): the step
    that is captured."""
    estimate: Estimate = objective.estimate(model, guide, args, kl_weight)
    gradients = torch.autograd.grad(estimate.surrogate, parameters, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else _laid_out_like(p, g)
        for p, g in zip(parameters, gradients, strict=True)
    ]
    return (estimate.loss.detach(), estimate.kl.detach(), estimate.reconstruction.detach(), *filled)


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Fused optimizers walk through memory and not through indices: a transposed gradient would be applied to
    the wrong elements, without any error."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def capture_step(
    objective: Objective,
    model: Program,
    guide: Program,
    parameters: Sequence[Tensor],
    args: tuple[Any, ...],
    kl_weight: Tensor,
) -> fx.GraphModule:
    """The graph ``g(*parameters, kl_weight, *args)`` of :func:`gradient_step` for batches shaped like
    ``args``.

    Neither the random stream nor the pair's buffers move. Raises whatever tracing raises where the program
    cannot be expressed as a graph: a branch on a tensor's value, ``.item()``, numpy.
    """

    def step(kl_weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
        return gradient_step(objective, model, guide, parameters, args, kl_weight)

    with untouched_buffers(model, guide), forked_streams():
        return capture(step, [kl_weight, *args], lifted=parameters)
