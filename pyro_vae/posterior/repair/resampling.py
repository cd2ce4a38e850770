"""As many draws as are wanted, out of weighted candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def resampled(
    log_weight: Array, log_density: Array, draws: int, generators: Sequence[np.random.Generator]
) -> Tensor:
    """Systematic resampling along the density, so that the tails get their share; independent for each
    observation, and in random order: (draws, observations)."""
    chosen = []
    for row, height, generator in zip(log_weight, log_density, generators, strict=True):
        order = np.argsort(height)
        finite = np.nan_to_num(np.exp(row[order]))
        total = np.cumsum(finite / finite.sum()) if finite.sum() > 0 else np.linspace(0, 1, len(row) + 1)[1:]
        points = (np.arange(draws) + generator.uniform()) / draws
        chosen.append(generator.permutation(order[np.searchsorted(total, points).clip(max=len(row) - 1)]))
    return torch.from_numpy(np.stack(chosen, axis=1))
