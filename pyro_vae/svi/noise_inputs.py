"""The noise of a captured graph as its inputs, so that whoever runs it decides whose stream is drawn from."""

from collections.abc import Callable

import torch
from torch import Size, Tensor, fx

from pyro_vae.graphs.simplification import has_effect, mutates

__all__ = ["NoiseError", "noise_as_inputs"]

aten = torch.ops.aten


class NoiseError(Exception):
    """A graph draws something else than standard normal noise, or changes buffers."""


def noise_as_inputs(graph: fx.GraphModule) -> Callable[[torch.Generator], list[Tensor]]:
    """Turn every draw of a graph into a last input; returns what draws these inputs, in the same order from
    the same stream.

    Raises
    ------
    NoiseError
        If it draws anything but standard normal noise, or changes tensors of others in place.
    """
    shapes: list[tuple[Size, torch.dtype]] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not has_effect(node):
            continue
        if mutates(node) or node.target is not aten.randn.default:
            raise NoiseError(f"its graph has {node.target}, and only normal draws can be vectorized")
        value = node.meta["val"]
        shapes.append((value.shape, value.dtype))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise_{len(shapes)}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(is_impure_node=has_effect)
    graph.recompile()

    def draw(generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(shape, dtype=dtype, generator=generator) for shape, dtype in shapes]

    return draw
