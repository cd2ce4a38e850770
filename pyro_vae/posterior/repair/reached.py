"""Where observations stand on the ladder: what is known of their posteriors, and the mixtures that adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.posterior.repair.mixture import Adapted, Mixture, adapt_mixture
from pyro_vae.posterior.repair.proposals import Proposal, matched
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

Rows = NDArray[np.int64]

HARDER = 2.0
"""How many times more candidates are taken where a mixture has adapted itself."""


@dataclass(frozen=True)
class Group:
    """Observations that go through a step together."""

    posterior: UnconstrainedPosterior
    rows: Rows
    """Which of all they are."""
    generators: Sequence[np.random.Generator]
    """One of each."""

    def part(self, few: Rows) -> Group:
        """Some of them, counted from 0."""
        generators = [self.generators[i] for i in few.tolist()]
        return Group(self.posterior.part(few), self.rows[few], generators)


@dataclass(frozen=True)
class Reached:
    """Where a group of observations stands: what is known of the posterior, and where the guide is."""

    mixture: Mixture
    guide: Proposal
    free: Tensor
    log_weight: Tensor
    """The guide's draws as coordinates, (draws, observations, size), and what they weigh."""

    @property
    def weighted(self) -> Proposal:
        """With the moments of the guide's weighted draws."""
        return matched(self.free, self.log_weight)

    @property
    def unit(self) -> Proposal:
        """With the moments of the mixture."""
        return self.mixture.moments()

    def part(self, rows: Rows) -> Reached:
        at = torch.from_numpy(rows)
        return Reached(self.mixture.part(at), self.guide.part(at), self.free[:, at], self.log_weight[:, at])

    def replaced(self, rows: Rows, other: Reached) -> Reached:
        return replace(self, mixture=self.mixture.replaced(torch.from_numpy(rows), other.mixture))


def adapted_twice(group: Group, mixture: Mixture, start: Reached) -> Adapted:
    """A mixture of two that adapt independently of each other: what one misses, the other may find."""
    n = len(group.rows)
    twice = torch.arange(n).repeat(2)
    mixture = mixture.joined(Mixture.of(start.weighted), 0.5)
    generators = [own for pair in zip(*(g.spawn(2) for g in group.generators), strict=True) for own in pair]
    both = adapt_mixture(
        group.posterior.part(twice.numpy()), mixture.part(twice), start.guide.part(twice), generators
    )
    one, other = (both.part(rows) for rows in torch.arange(2 * n).split(n))
    return Adapted(
        one.mixture.joined(other.mixture, 0.5),
        torch.minimum(one.worth, other.worth) / HARDER,
        torch.maximum(one.least, other.least),
    )
