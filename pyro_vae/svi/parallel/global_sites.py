"""Latents outside of the observation plate: what a batch's share must scale, and what not.

The loss of a pair with global latents is KL(global) + Σ over rows. A share of the rows has the whole of the
first term and a part of the second, so shares neither add up nor average to the whole; with the second scaled
up to the batch they average.
"""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.pairs.running import in_observation_plate

__all__ = ["PlateScale"]


class PlateScale(Messenger):
    """Multiplies log densities in the observation plate by ``factor``: a tensor, so captured graphs see it
    change.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    >>> plates = PlateScale(torch.zeros(()))
    >>> _ = plates.factor.fill_(3.0)
    >>> with plates:
    ...     trace = pyro.poutine.trace(model).get_trace(torch.zeros(2))
    >>> trace.nodes["mean"]["scale"], float(trace.nodes["x"]["scale"])
    (1.0, 3.0)
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.factor = torch.ones((), dtype=like.dtype, device=like.device)

    def _pyro_sample(self, msg: Any) -> None:
        if in_observation_plate(msg):
            msg["scale"] = msg["scale"] * self.factor
