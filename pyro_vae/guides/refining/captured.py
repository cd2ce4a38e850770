"""A density as graphs, and whether these agree with Pyro."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.splitting import split_by_rows
from pyro_vae.graphs.tracing import capture

AGREEMENT = 1e-3
"""Relative to the largest number: kernels may sum in another order, while anything frozen is off by more."""

Replay = Callable[..., Sequence[Tensor]]


class Captured(NamedTuple):
    """A density as a graph of ``(free, *shared, *own)``, in two parts where that saves something."""

    once: Replay | None
    """Of the tensors with a row for each observation, what the density needs of them; None if that is
    themselves."""
    each: Replay
    """The density, of points, what all share, and what ``once`` gave for the rows."""


@dataclass
class Graphs:
    """Captured densities, for those who evaluate the same model again and again."""

    made: dict[Hashable, Captured] = field(default_factory=dict)
    runs: dict[Hashable, int] = field(default_factory=dict)
    refused: bool = False
    """Whether the model cannot be traced."""


def capture_density(
    density: Callable[..., Sequence[Tensor]], free: Tensor, shared: Sequence[Tensor], own: Sequence[Tensor]
) -> Captured:
    """Capture ``density(free, *shared, *own)`` for points, tensors that all share, and rows of their own."""
    graph = capture(density, [free, *shared, *own])
    first = 1 + len(shared)
    parts = split_by_rows(graph, range(first, first + len(own)))
    if parts is None:
        return Captured(None, make_replay(graph))
    once, each = parts
    return Captured(make_replay(once), make_replay(each))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results agree, as far as kernels that sum in another order do."""
    finite = torch.isfinite(b)
    if a.shape != b.shape or not torch.equal(torch.isfinite(a), finite):
        return False
    a, b = a[finite].double(), b[finite].double()
    return a.numel() == 0 or bool((a - b).abs().max() <= AGREEMENT * b.abs().max() + 1e-12)
