"""Scale minibatches to all data, for models that take each batch for all."""

from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.pairs.isolation import Program
from pyro_vae.svi.objectives.elbo import Estimate, Objective


@dataclass(frozen=True)
class WholeData:
    """Evaluate an objective as if the plate of a batch were a subsample of a plate over all data.

    Where a model says ``pyro.plate("data", len(x))`` beside a latent that belongs to all data, the prior of
    that latent would count once for every batch, and its posterior come out too wide. Here the sites in the
    plate are scaled as Pyro scales them in ``pyro.plate("data", observations, subsample=rows)``. ``fit``
    makes one of these where data come in several batches.

    Parameters
    ----------
    objective
        What is minimized.
    plate
        Name of the plate over a batch.
    observations
        Of all data.
    """

    objective: Objective
    plate: str
    observations: int

    def weight_at(self, step: int) -> float:
        """The weight of the KL at a step: the objective's own."""
        return self.objective.weight_at(step)

    def count(self, _batch: Any) -> int:
        """How many observations an estimate is about, whatever the batch."""
        return self.observations

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective, about all data."""
        scaled = _Scaled(self.plate, self.observations)
        return self.objective.estimate(scaled(model), scaled(guide), args, kl_weight)


class _Scaled(Messenger):
    def __init__(self, plate: str, observations: int) -> None:
        super().__init__()
        self.plate, self.observations = plate, observations

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                msg["scale"] = msg["scale"] * (self.observations / frame.size)
