"""A density as graphs, and whether these agree with Pyro."""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, fx

from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.simplification import has_effect
from pyro_vae.graphs.splitting import split_by_rows
from pyro_vae.graphs.tracing import capture

AGREEMENT = 1e-3
"""Relative to the largest number: kernels may sum in another order, while anything frozen is off by more."""

Replay = Callable[..., Sequence[Tensor]]


class Captured(NamedTuple):
    """A density as a graph of ``(free, *shared, *own)``, in two parts where that saves something."""

    rows: int | None
    """How many it takes at once; None if any number."""
    once: Replay | None
    """Of the tensors with a row for each observation, what the density needs of them; None if that is
    themselves."""
    each: Replay
    """The density, of points, what all share, and what ``once`` gave for the rows."""


@dataclass
class Graphs:
    """Captured densities, for those who evaluate the same model again and again."""

    ahead: int = 0
    """Rows that will be asked for."""
    made: dict[Hashable, Captured] = field(default_factory=dict)
    runs: dict[Hashable, int] = field(default_factory=dict)
    refused: bool = False
    """Whether the model cannot be traced."""


def capture_density(
    density: Callable[..., Sequence[Tensor]],
    free: Tensor,
    shared: Sequence[Tensor],
    own: Sequence[Tensor],
    *,
    any_rows: bool,
) -> dict[bool, Captured]:
    """Capture ``density(free, *shared, *own)`` for points, tensors that all share, and rows of their own.

    What it returns last is the gradient. By whether it is wanted: graphs of everything, and of the rest.

    With ``any_rows`` they take any number of rows; raises FixedRowsError where that is impossible."""
    full = capture(density, [free, *shared, *own])
    first, rows = 1 + len(shared), len(free)
    found = {}
    for gradient, graph in ((True, full), (False, _without_the_last(full))):
        parts = split_by_rows(graph, range(first, first + len(own)))
        made = [make_replay(part, rows if any_rows else None) for part in parts or (graph,)]
        found[gradient] = Captured(None if any_rows else rows, made[0] if parts else None, made[-1])
    return found


def _without_the_last(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph that computes all results but the last."""
    shorter = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    (output,) = (node for node in shorter.graph.nodes if node.op == "output")
    (results,) = output.args
    output.args = (tuple(results)[:-1],)
    shorter.graph.eliminate_dead_code(is_impure_node=has_effect)
    return shorter


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree, as far as kernels that sum in another order do."""
    finite = torch.isfinite(b)
    if a.shape != b.shape or not torch.equal(torch.isfinite(a), finite):
        return False
    a, b = a[finite].double(), b[finite].double()
    return a.numel() == 0 or bool((a - b).abs().max() <= AGREEMENT * b.abs().max() + 1e-12)
