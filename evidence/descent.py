r"""Only σ, by Adam, with everything else known: the setting of the experiments 2, 5 and 7.

A linear Gaussian model (probabilistic PCA with a wide prior) has the same posterior standard deviation s for
every x. Where the guide's mean is exact, the one-draw ELBO of :math:`q = N(\mathrm{mean}, \sigma^2)` is

.. math:: -\tfrac12 (\sigma/s)^2 \varepsilon^2 + \log\sigma + \mathrm{const}, \qquad
   \frac{\partial}{\partial\log\sigma} = 1 - (\sigma/s)^2 \varepsilon^2,

and a batch replaces :math:`\varepsilon^2` by its mean. Every latent is a fit of its own, because Adam works
element by element; so tensors of targets, seeds and learning rates run at once.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyro_vae.guides.scales import ScaleMap

__all__ = ["BETA2", "START", "Path", "Rule", "arrival", "descend", "kl_from_truth"]

START = 1.0
"""σ at the first step, the guides' default."""
BATCH = 256
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's defaults (Kingma and Ba, 2015)."""


@dataclass
class Rule:
    """How the optimizer's number becomes σ; subclasses add what constrained optimization does besides."""

    scale_map: ScaleMap

    def pull(self, raw: Tensor) -> Tensor:
        """A gradient beside that of the loss."""
        return torch.zeros_like(raw)

    def project(self, raw: Tensor) -> Tensor:
        """Where a step may end."""
        return raw


@dataclass
class Path:
    """What happened."""

    log_scale: Tensor
    """After each step: (steps, *shape)."""
    raw: Tensor
    """At the end, (*shape)."""
    invalid: Tensor
    """Share of steps that proposed raw ≤ 0, which is no σ where raw is meant to be one: (*shape)."""
    slopes: Tensor = field(default_factory=lambda: torch.empty(0))
    """d log σ / d raw at the end, (*shape)."""


def descend(
    rule: Rule,
    truth: Tensor,
    lr: Tensor,
    steps: int,
    seed: int,
    *,
    start: float = START,
    beta2: float = BETA2,
    cosine: bool = False,
) -> Path:
    """Minimize the negative ELBO of standard deviations ``truth`` from σ = ``start``, with rates ``lr`` that
    broadcast to them, and go to zero by a cosine if asked to; ``beta2`` is how much of the mean squared
    gradient Adam keeps at each step."""
    generator = np.random.default_rng(seed)
    shape = torch.broadcast_shapes(truth.shape, lr.shape)
    raw = rule.scale_map.inv(torch.full(shape, start, dtype=torch.float64))
    first, second, invalid = (torch.zeros_like(raw) for _ in range(3))
    path = torch.empty(steps, *shape, dtype=torch.float32)
    log_scale, target = rule.scale_map.log_scale(raw), truth.log()
    for step in range(1, steps + 1):
        # the mean of ε² over a batch is a gamma variable: BATCH numbers for the price of one
        energy = torch.from_numpy(generator.standard_gamma(BATCH / 2, shape)) / (BATCH / 2)
        ratio = (2 * (log_scale - target)).exp()
        gradient = rule.scale_map.slope(raw) * (ratio * energy - 1) + rule.pull(raw)
        first.lerp_(gradient, 1 - BETA1)
        second.lerp_(gradient.square(), 1 - beta2)
        size = (second / (1 - beta2**step)).sqrt() + EPSILON
        rate = lr * (0.5 * (1 + math.cos(math.pi * (step - 1) / steps)) if cosine else 1.0)
        proposed = raw - rate * (first / (1 - BETA1**step)) / size
        invalid += proposed <= 0
        raw = rule.project(proposed)
        log_scale = rule.scale_map.log_scale(raw)
        path[step - 1] = log_scale
    return Path(path, raw, invalid / steps, rule.scale_map.slope(raw))


def arrival(path: Path, truth: Tensor, *, window: int = 100, within: float = 0.01) -> Tensor:
    """The first step at which σ, averaged in logs over the last ``window`` steps, is within 1% of the truth;
    NaN for never. The average takes off the jitter that a constant rate has at the end."""
    total = path.log_scale.cumsum(0, dtype=torch.float64)
    total = torch.cat([torch.zeros_like(total[:1]), total])
    mean = (total[window:] - total[:-window]) / window
    there = (mean - truth.log()).abs() < math.log1p(within)
    steps = there.double().argmax(0).double() + window
    return torch.where(there.any(0), steps, math.nan)


def kl_from_truth(path: Path, truth: Tensor, *, step: int | None = None, window: int = 100) -> Tensor:
    """KL(q ‖ posterior) in nats, averaged over the steps before ``step`` or the end: what the ELBO lacks of
    the evidence."""
    ratio = path.log_scale[:step][-window:].double() - truth.log()
    return (0.5 * (2 * ratio).expm1() - ratio).mean(0)
