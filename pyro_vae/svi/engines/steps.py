"""Many whole steps per call: what the makers of such steps have in common."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["StepTerms", "Steps", "UnsupportedError"]


class UnsupportedError(Exception):
    """Steps of this kind cannot express this graph or optimizer; the message names what they do not know."""


class StepTerms(NamedTuple):
    """One row per step that was run; totals in nats, as Pyro reports them."""

    loss: Tensor
    kl: Tensor
    reconstruction: Tensor
    grad_norm: Tensor
    """Of the whole gradient, before it is clipped."""
    bad: Tensor
    """Whether loss or gradient was not finite; such a step changed nothing."""


class Steps(Protocol):
    """Steps of Adam on a captured graph, for batches of one size."""

    parameters: list[Tensor]
    optimizer: Optimizer
    generator: torch.Generator
    batch_size: int
    dtype: torch.dtype
    max_norm: float
    most_bad: int
    bad_in_a_row: int
    """At the end of the steps so far; whoever takes steps in another way in between writes it."""

    @property
    def steps_per_call(self) -> int:
        """So many take a moment; Python handles an interrupt only between calls."""

    def run(
        self, data: Sequence[Tensor], index: Tensor, kl_weight: Tensor, lr: Tensor | None = None
    ) -> StepTerms:
        """As many steps as ``index`` has rows, or fewer if ``most_bad`` in a row were not finite; ``lr`` has
        a row for each step that changes the parameters, and a column for each group of the optimizer."""
