"""A graph in two: what depends on the observations alone, computed once, and the rest, at every point.

A likelihood computes log-factorials of its data, and a conditional model features of its conditions, anew for
every value of the latents. They do not change with the latents.
"""

from collections.abc import Collection

from torch import Tensor, fx

from pyro_vae.graphs.simplification import has_effect, mutates


def split_by_rows(
    graph: fx.GraphModule, fixed: Collection[int]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Split a graph ``g(*inputs)`` of inputs with rows; None where nothing would be gained.

    Parameters
    ----------
    graph
        Captured, with what each node's result looks like.
    fixed
        Positions of inputs that stay while others change. All have as many rows.

    Returns
    -------
    tuple
        ``once(*fixed inputs)``, a tuple of tensors with as many rows, and ``each(*other inputs, *once)``,
        which returns what the graph does. That rows do not depend on each other is for the caller to know.

    Examples
    --------
    >>> import torch
    >>> from pyro_vae.graphs.tracing import capture
    >>> graph = capture(lambda z, x: (z + torch.lgamma(x),), [torch.ones(3), torch.ones(3)])
    >>> once, each = split_by_rows(graph, [1])
    >>> each(torch.ones(3), *once(torch.full((3,), 4.0)))[0]
    tensor([2.7918, 2.7918, 2.7918])
    """
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if not fixed or any(mutates(node) for node in nodes):
        return None
    rows = inputs[next(iter(fixed))].meta["val"].shape[0]
    known = {inputs[i] for i in fixed}
    for node in nodes:
        if _stays(node, known, rows):
            known.add(node)
    given = [node for node in nodes if node in known and any(user not in known for user in node.users)]
    if all(node.op == "placeholder" for node in given):
        return None
    once, each = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in known or node.op == "get_attr":
            copies[node] = once.node_copy(node, copies.__getitem__)
    once.output(tuple(copies[node] for node in given))
    copies = {}
    for node in inputs:
        if node not in known:
            copies[node] = each.node_copy(node, copies.__getitem__)
    for number, node in enumerate(given):
        copies[node] = each.placeholder(f"once_{number}")
        copies[node].meta = dict(node.meta)
    for node in nodes:
        if node not in known and node.op != "placeholder":
            copies[node] = each.node_copy(node, copies.__getitem__)
    return _module(graph, once), _module(graph, each)


def _stays(node: fx.Node, known: set[fx.Node], rows: int) -> bool:
    """Whether a node depends on known ones and on what the graph holds alone, and has their rows."""
    if node.op != "call_function" or has_effect(node):
        return False
    arguments = node.all_input_nodes
    result = node.meta.get("val")
    return (
        any(argument in known for argument in arguments)
        and all(argument in known or argument.op == "get_attr" for argument in arguments)
        and isinstance(result, Tensor)
        and result.shape[:1] == (rows,)
    )


def _module(graph: fx.GraphModule, part: fx.Graph) -> fx.GraphModule:
    part.eliminate_dead_code(is_impure_node=has_effect)
    part.lint()
    return fx.GraphModule(graph, part)
