"""Say when evidence from importance weights is believed: the one rule that readings and comparisons
follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_vae.posterior.pareto import SMALLEST_ESS, khat_threshold

MATERIAL_SHARE = 0.05
"""Of the observations. Where the weights of more cannot be believed, neither can their mean evidence."""


def believed(diagnostics: Mapping[Any, Any]) -> NDArray[np.bool_] | None:
    """Of which observations the weights can be believed; ``None`` if the diagnostics do not say.

    Believed are those whose k̂ is at most the threshold and, where the effective draws are known, at least 25
    of whose draws are effective: k̂ alone passes a sum that a handful of draws carry. Where ``repair`` judged
    (``believable``), its word counts.

    >>> believed({"khat": [0.1, 0.1, 0.9], "ess": [800.0, 2.0, 800.0], "khat_threshold": 0.67})
    array([ True, False, False])
    """
    if "believable" in diagnostics:
        return np.asarray(diagnostics["believable"], dtype=bool)
    if "khat" not in diagnostics:
        return None
    khat = np.asarray(diagnostics["khat"], dtype=np.float64)
    good: NDArray[np.bool_] = khat <= threshold_of(diagnostics)  # False for NaN
    if "ess" in diagnostics:
        good = good & (np.asarray(diagnostics["ess"], dtype=np.float64) >= SMALLEST_ESS)
    return good


def threshold_of(diagnostics: Mapping[Any, Any]) -> float:
    """The k̂ that these diagnostics hold to: their own, or that of their number of draws (1000 if unknown)."""
    known = getattr(diagnostics, "attrs", diagnostics)
    if "khat_threshold" in known:
        return float(known["khat_threshold"])
    return khat_threshold(int(known.get("draws", 1000)))
