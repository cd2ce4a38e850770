"""Draw the batches of an objective anew at every step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.pairs.isolation import Program
from pyro_vae.svi.objectives.elbo import Estimate, Objective


@dataclass(frozen=True)
class Augmented:
    """Evaluate an objective on ``draw(*batch)`` in place of the batch.

    What is drawn is part of the step: captured, native and recorded steps draw it as eager ones do, with the
    same numbers from the same seed. ``fit`` makes one of these for data such as
    :class:`~pyro_vae.data.DynamicBinarization`.

    Parameters
    ----------
    objective
        What is minimized.
    draw
        Tensor operations on the parts of a batch; returns a tensor or a tuple of them.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> from pyro_vae.svi import ELBO
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> doubled = Augmented(ELBO(), lambda x: 2 * x)
    >>> round(float(doubled.estimate(model, guide, (torch.zeros(1),)).kl), 4)
    0.0966
    """

    objective: Objective
    draw: Callable[..., Tensor | tuple[Tensor, ...]]

    def weight_at(self, step: int) -> float:
        """The weight of the KL at a step: the objective's own."""
        return self.objective.weight_at(step)

    def batch(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch that the pair sees."""
        drawn = self.draw(*args)
        return drawn if isinstance(drawn, tuple) else (drawn,)

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kl_weight: Tensor | float = 1.0
    ) -> Estimate:
        """One draw of the objective for a fresh draw of the batch."""
        return self.objective.estimate(model, guide, self.batch(args), kl_weight)
