"""A function runs once; a graph of tensor operations comes out.

``make_fx`` traces it: no handlers, no Python of the user's, no autograd are left. Tensors named as ``lifted``
become leading inputs of the graph, so it sees every change of them; other tensors that the function holds
(buffers, data closed over) stay live references. Numbers that are not tensors are frozen at the value that
they had: whoever replays a graph compares it with the function now and then.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module  # Python code is written once, at the end
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._mode_utils import no_dispatch

from pyro_vae.graphs.in_place import without_own_mutations
from pyro_vae.graphs.reading import Watch, check_shapes
from pyro_vae.graphs.simplification import has_effect, simplify

_IDENTITIES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
"""Copies of nothing: without autograd they are only overhead."""


def capture(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    lifted: Sequence[Tensor] = (),
    watch: Watch | None = None,
) -> fx.GraphModule:
    """Return the graph ``g(*lifted, *inputs)`` of ``function(*inputs)`` for inputs of these shapes.

    The function really runs, so it may move the random stream and change buffers. Raises whatever tracing
    raises where it cannot be expressed as a graph: a branch on a tensor's value, ``.item()``, numpy, a size
    that depends on values. ``watch`` notes what it read; by default nobody asks.

    Examples
    --------
    >>> weight = torch.tensor(3.0)
    >>> graph = capture(lambda x: (weight * x,), [torch.ones(2)], lifted=[weight])
    >>> graph(torch.tensor(5.0), torch.ones(2))[0]
    tensor([5., 5.])
    """
    watch = Watch() if watch is None else watch

    def watched(*inputs: Tensor) -> Sequence[Tensor]:
        with watch:
            return function(*inputs)

    with warnings.catch_warnings(), _light_shapes(), _use_lazy_graph_module(True):
        warnings.simplefilter("ignore")  # tracers warn of constants: comparing finds the ones that matter
        graph = make_fx(watched, tracing_mode="real", _allow_non_fake_inputs=True)(*inputs)
    watch.numbers += check_shapes(graph, watch.lines, watch.harmless)
    _lift(graph, lifted)
    _drop_dead_code(graph)
    without_own_mutations(graph)
    return simplify(graph)


@contextmanager
def _light_shapes() -> Iterator[None]:
    """What a node's result looks like, all in one fake mode. By itself the tracer makes a mode for each node
    and for each use of a parameter, and each notes the stack it is made on: two thirds of its time."""
    mode = FakeTensorMode(allow_fallback_kernels=True)
    set_meta, extract_val = proxy_tensor.set_meta, proxy_tensor.extract_val

    def light(value: Any) -> FakeTensor | None:
        if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
            return None
        with no_dispatch():  # modes that watch the function have no business with this
            like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(mode, like, value.device)

    def light_meta(proxy: Any, value: Any) -> Any:
        if (seen := light(value)) is None:
            return set_meta(proxy, value)
        proxy.node.meta["val"] = seen
        return proxy

    def light_val(value: Any, include_real: bool = False) -> Any:
        return extract_val(value, include_real) if (seen := light(value)) is None else seen

    proxy_tensor.set_meta, proxy_tensor.extract_val = light_meta, light_val  # type: ignore[assignment]
    try:
        yield
    finally:
        proxy_tensor.set_meta, proxy_tensor.extract_val = set_meta, extract_val


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
