"""Pyro runs once; a graph of loss and gradients comes out.

The objective and its gradient are traced by ``make_fx`` into a graph of tensor operations: no handlers, no
Python of the user's, no autograd are left in it. Parameters become inputs of the graph, so it sees every
update; other tensors that the pair holds (buffers, data closed over) stay live references. Numbers that are
not tensors are frozen at the value that they had, which is why
:mod:`pyro_vae.svi.engines.verification` compares the graph with Pyro after it is built and during the fit.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.devices import forked_streams
from pyro_vae.pairs.isolation import Program, untouched_buffers
from pyro_vae.svi.engines.graph.simplification import has_effect, simplify
from pyro_vae.svi.objectives.elbo import Estimate, Objective

__all__ = ["capture_step", "gradient_step"]

_IDENTITIES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Copies of nothing: without autograd they are only overhead."""


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

    with (
        untouched_buffers(model, guide),
        forked_streams(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # tracers warn of constants: verification finds the ones that matter
        graph = make_fx(step, tracing_mode="real", _allow_non_fake_inputs=True)(kl_weight, *args)
    _lift(graph, parameters)
    _drop_dead_code(graph)
    graph.recompile()
    return simplify(graph)


def _lift(graph: fx.GraphModule, parameters: Sequence[Tensor]) -> None:
    """Turn the parameters, which the tracer kept as attributes, into leading inputs."""
    first = next(iter(graph.graph.nodes))
    position = {id(parameter): i for i, parameter in enumerate(parameters)}
    with graph.graph.inserting_before(first):
        inputs = [graph.graph.placeholder(f"parameter_{i}") for i in range(len(parameters))]
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            index = position.get(id(getattr(graph, str(node.target))))
            if index is not None:
                node.replace_all_uses_with(inputs[index])
                graph.graph.erase_node(node)


def _drop_dead_code(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(is_impure_node=has_effect)
