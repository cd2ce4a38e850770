"""The two parts of a graph do together what it does, and the first only what stays."""

import torch

from pyro_vae.graphs.splitting import split_by_rows
from pyro_vae.graphs.tracing import capture


def targets(graph):
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def test_what_depends_on_fixed_inputs_alone_is_computed_once():
    weight = torch.randn(3, 4)

    def function(z, shared, x, y):
        features = torch.tanh(y @ weight)
        return ((z * features * shared).sum(-1) - torch.lgamma(x + 1), z.exp())

    inputs = [torch.rand(6, 4), torch.rand(4), torch.rand(6), torch.rand(6, 3)]
    once, each = split_by_rows(capture(function, inputs), [2, 3])
    assert {"aten.lgamma.default", "aten.tanh.default"} <= targets(once)
    assert not {"aten.lgamma.default", "aten.tanh.default", "aten.mm.default"} & targets(each)
    z, shared, x, y = (torch.rand_like(tensor) for tensor in inputs)
    kept = once(x, y)
    assert all(len(tensor) == 6 for tensor in kept)
    rows = torch.tensor([5, 0, 0, 1, 2, 3])
    given = each(z, shared, *(tensor[rows] for tensor in kept))
    for one, other in zip(given, function(z, shared, x[rows], y[rows]), strict=True):
        torch.testing.assert_close(one, other)


def test_what_has_no_rows_of_its_own_is_not_split_off():
    graph = capture(lambda z, x: (z + x.mean(0),), [torch.rand(6, 4), torch.rand(6, 4)])
    assert split_by_rows(graph, [1]) is None


def test_where_nothing_would_be_gained_there_are_no_parts():
    graph = capture(lambda z, x: ((z - x).square(),), [torch.rand(6), torch.rand(6)])
    assert split_by_rows(graph, [1]) is None
    assert split_by_rows(graph, []) is None


def test_draws_are_not_made_once():
    def function(z, x):
        return (z + torch.randn(6) * x,)

    graph = capture(function, [torch.rand(6), torch.rand(6)])
    assert split_by_rows(graph, [1]) is None
