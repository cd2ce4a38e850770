"""Whether weighted draws can be believed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from pyro_vae.posterior.pareto import khat_threshold, pareto_smooth
from pyro_vae.posterior.repair.mixture import least_log_evidence
from pyro_vae.posterior.repair.proposals import effective_draws

Array = NDArray[np.float64]

LARGEST_KHAT = 0.5
"""Of weights whose draws are believed, or the threshold of so few draws, if that is lower. Up to 0.7 weighted
averages can still be computed, but only below 0.5 is the variance of the weights finite, and with it the
error of resampled draws; a guide too narrow by half passes as 0.7 now and then (Yao, Vehtari, Simpson and
Gelman, 2018, "Yes, but did it work?: Evaluating variational inference")."""


class Verdict(NamedTuple):
    """What log weights (observations, draws) say of each observation."""

    smooth: Array
    """The weights themselves, normalized and with the largest ones smoothed, (observations, draws)."""
    khat: Array
    ess: Array
    """Their Pareto shape, and how many of the draws are effective."""
    log_evidence: Array
    log_evidence_se: Array
    """In nats; the error is that of the delta method."""
    least: Array
    """What the log evidence is at least: four standard errors below."""
    trusted: NDArray[np.bool_]
    """Whether k̂ is good."""

    @property
    def worth(self) -> Array:
        """Which share of the draws is effective."""
        share: Array = self.ess / self.smooth.shape[1]
        return share

    def believable(self, effective: float, least: Array) -> NDArray[np.bool_]:
        """Where k̂ is good, so many draws are effective, and the evidence is not lower than what was shown
        before."""
        with np.errstate(all="ignore"):  # weights that are all zero
            lost = self.log_evidence + 4 * self.log_evidence_se < least
        good: NDArray[np.bool_] = self.trusted & (self.ess >= effective) & ~lost
        return good


def judged(log_weight: Array) -> Verdict:
    """Judge log weights of shape (observations, draws)."""
    draws = log_weight.shape[1]
    smooth, khat = pareto_smooth(log_weight)
    weights = torch.from_numpy(log_weight.T)
    ess = effective_draws(weights).numpy()
    with np.errstate(all="ignore"):  # weights that are all zero or no numbers
        evidence = logsumexp(log_weight, axis=1) - np.log(draws)
        error = np.sqrt(np.maximum(draws / ess - 1, 0) / (draws - 1))
    trusted = khat <= min(LARGEST_KHAT, khat_threshold(draws))
    return Verdict(smooth, khat, ess, evidence, error, least_log_evidence(weights).numpy(), trusted)
