"""Clean-up of a captured graph: what costs a call and computes nothing.

Autograd and Pyro leave many operations behind that only matter while they run: views of the same shape,
transposes of transposes, products with 1, the same thing twice. Each costs a few microseconds at every step,
which is much where a step takes a few hundred. Numbers stay what they are, up to the order of a sum.
"""

import torch
from torch import Tensor, fx

from pyro_vae.graphs.in_place import works_in_place
from pyro_vae.graphs.rewriting import (
    Rule,
    apply_rules,
    as_node,
    first,
    looks_like,
    looks_like_its_argument,
    made_constant,
    one_value,
    replace,
)
from pyro_vae.graphs.selecting import number_by_mask, number_in_a_part

aten = torch.ops.aten
_VIEWS = (
    aten.view.default,
    aten.expand.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_OF_A_SHAPE = (
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)
"""They look at the shape of their argument only, and shapes are fixed in a graph."""
_NEW = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.zeros.default,
    aten.ones.default,
)


def simplify(graph: fx.GraphModule) -> fx.GraphModule:
    """Clean a graph up in place, and return it.

    A graph that changes tensors in place, and reads them, is left alone: there the order of reading and
    writing counts. Tensors that it makes for itself may be filled in place, and counters be counted up.
    """
    if order_counts(graph):
        graph.recompile()
        return graph
    _fold_constants(graph)
    changed = True
    while changed:
        graph.graph.eliminate_dead_code(is_impure_node=has_effect)
        changed = apply_rules(graph, _RULES) or merge_equal(graph)
    graph.recompile()
    return graph


def has_effect(node: fx.Node) -> bool:
    """Inputs, outputs, in-place updates, and draws: a draw that nobody uses still moves the random stream."""
    if node.op in ("placeholder", "output"):
        return True
    return node.op == "call_function" and (works_in_place(node) or _is_random(node))


def mutates(node: fx.Node) -> bool:
    """Whether an operation changes a tensor in place that anyone else can see."""
    return works_in_place(node) and not _is_fresh(node.args[0])


def order_counts(graph: fx.GraphModule) -> bool:
    """Whether a graph reads a tensor that it changes in place for others to see."""
    return any(mutates(node) and not _only_counts(node) for node in graph.graph.nodes)


def _only_counts(node: fx.Node) -> bool:
    """Whether a tensor is changed that nothing else in the graph looks at, as batch norm counts batches."""
    changed = node.args[0]
    held = isinstance(changed, fx.Node) and changed.op == "get_attr" and len(changed.users) == 1
    return held and not node.users


def _is_fresh(argument: object) -> bool:
    """Whether a tensor was made for the operation that changes it: ``torch.empty(3).normal_()``, as torch's
    own distributions and dropout draw."""
    if not isinstance(argument, fx.Node) or len(argument.users) != 1:
        return False
    return argument.target in _NEW or (works_in_place(argument) and _is_fresh(argument.args[0]))


def _stands_alone(node: fx.Node) -> bool:
    """Draws, and what is changed in place: never computed in advance or once for two."""
    return _is_random(node) or works_in_place(node) or any(works_in_place(user) for user in node.users)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _view_of_the_same_shape(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    return first(node) if node.target in _VIEWS and looks_like_its_argument(node) else None


def _transpose_of_a_transpose(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    return _undone(node, aten.t.default)


def _negative_of_a_negative(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    return _undone(node, aten.neg.default)


def _product_with_one(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if node.target not in _PRODUCTS:
        return None
    for kept, factor in (node.args, node.args[::-1]):
        if _equals(graph, factor, 1) and looks_like(node, kept):
            return as_node(kept)
    return None


def _quotient_by_one(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    divides = node.target in (aten.div.Tensor, aten.div.Scalar) and _equals(graph, node.args[1], 1)
    return first(node) if divides and looks_like_its_argument(node) else None


def _first_power(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    power = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1
    return first(node) if power and looks_like_its_argument(node) else None


def _sum_with_zero(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if node.target not in _SUMS:
        return None
    if _equals(graph, node.args[1], 0) and looks_like_its_argument(node):
        return first(node)
    from_zero = node.target is aten.add.Tensor and not node.kwargs and _equals(graph, node.args[0], 0)
    return as_node(node.args[1]) if from_zero and looks_like(node, node.args[1]) else None


def _join_of_one(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if node.target is not aten.cat.default or len(_parts(node)) != 1:
        return None
    return as_node(_parts(node)[0]) if looks_like(node, _parts(node)[0]) else None


def _only_piece_of_a_split(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    split = first(node) if getattr(node.target, "__name__", "") == "getitem" else None
    if split is None or split.target not in (aten.split_with_sizes.default, aten.split.Tensor):
        return None
    return first(split) if looks_like(node, first(split)) else None


def _sum_of_a_sum(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Σ over what is left after a Σ over some dimensions: one Σ over all."""
    inner = first(node) if node.target is aten.sum.default else None
    if inner is None or inner.target is not aten.sum.dim_IntList or inner.kwargs or node.kwargs:
        return None
    argument = first(inner)
    if argument is None:
        return None
    with node.graph.inserting_before(node):
        total: fx.Node = node.graph.call_function(aten.sum.default, (argument,))
    total.meta = dict(node.meta)
    return total


def _normals_in_one(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``torch.empty(3).normal_()``, as torch's distributions draw, is ``torch.randn(3)``: the same numbers
    from the same stream."""
    if node.target is not aten.normal_.default or tuple(node.args[1:]) not in ((), (0.0,), (0.0, 1.0)):
        return None
    memory = first(node)
    if memory is None or memory.target is not aten.empty.memory_format or len(memory.users) != 1:
        return None
    options = {name: value for name, value in memory.kwargs.items() if name != "memory_format"}
    with node.graph.inserting_before(node):
        draw: fx.Node = node.graph.call_function(aten.randn.default, memory.args, options)
    draw.meta = dict(node.meta)
    return draw


def _copy_of_all(_: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """``memory.copy_(x)``, once it is an operation that makes a new tensor."""
    copied = node.target is aten.copy.default and looks_like(node, node.args[1])
    return as_node(node.args[1]) if copied else None


_RULES: tuple[Rule, ...] = (
    _view_of_the_same_shape,
    _transpose_of_a_transpose,
    _negative_of_a_negative,
    _product_with_one,
    _quotient_by_one,
    _first_power,
    _sum_with_zero,
    _join_of_one,
    _only_piece_of_a_split,
    _sum_of_a_sum,
    _normals_in_one,
    _copy_of_all,
    number_in_a_part,
    number_by_mask,
)


def merge_equal(graph: fx.GraphModule) -> bool:
    """Compute what is computed twice once; draws are not: each is its own."""
    seen: dict[str, fx.Node] = {}
    changed = False
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and not _stands_alone(node):
            same = seen.setdefault(repr((str(node.target), node.args, node.kwargs)), node)
            if same is not node:
                replace(node, same)
                changed = True
    return changed


@torch.no_grad()
def _fold_constants(graph: fx.GraphModule) -> None:
    """Compute once what depends on no input, no draw and no tensor that may change between steps.

    Outputs are left alone: whoever receives them may change them in place.
    """
    known: dict[fx.Node, Tensor] = {}
    for node in graph.graph.nodes:
        value = _value(graph, node, known)
        if value is not None:
            known[node] = value
    for number, (node, value) in enumerate(known.items()):
        if all(user in known for user in node.users) or any(user.op == "output" for user in node.users):
            continue
        replace(node, made_constant(node, graph, str(number), value))


def _value(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor | None:
    if node.op != "call_function" or _stands_alone(node) or not torch.is_tensor(node.meta.get("val")):
        return None
    if node.target is aten.lift_fresh_copy.default:  # a literal in the user's program
        literal = first(node)
        return None if literal is None else getattr(graph, str(literal.target)).clone()
    result: Tensor
    if node.target in _OF_A_SHAPE:
        like = node.meta["val"]
        stand_in = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
        result = node.target(stand_in, *node.args[1:], **node.kwargs)
    elif all(argument in known for argument in node.all_input_nodes):
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda argument: known[argument])
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    else:
        return None
    return result


def _parts(node: fx.Node) -> list[object]:
    return list(node.args[0])  # type: ignore[arg-type]


def _undone(node: fx.Node, target: object) -> fx.Node | None:
    inner = first(node) if node.target is target else None
    return first(inner) if inner is not None and inner.target is target else None


def _equals(graph: fx.GraphModule, argument: object, number: int) -> bool:
    return one_value(graph, argument) == number
