"""Compile a graph by torch's inductor: fewer, larger kernels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pyro_vae.graphs.simplification import mutates


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return the graph compiled for inputs of these shapes; it takes ten to thirty seconds the first time.

    Random numbers are drawn by torch's own kernels from torch's stream, so the numbers are those of the graph
    up to rounding. Raises NotImplementedError if the graph changes tensors in place. Whatever inductor raises
    passes: there may be no compiler."""
    if any(mutates(node) for node in graph.graph.nodes):
        raise NotImplementedError("it changes tensors in place, as batch norm does its statistics")
    with torch._inductor.config.patch(fallback_random=True), torch.no_grad():
        function: Callable[..., Sequence[Tensor]] = torch._inductor.compile(graph, list(inputs))
        function(*inputs)  # builds what is built at the first call
    return function
