"""The climb of each observation, from the guide's draws to draws that can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.posterior.drawing import Pair
from pyro_vae.posterior.pareto import khat_threshold, pareto_smooth
from pyro_vae.posterior.repair.mixture import GUIDE_SHARE, Adapted, Mixture, adapt_mixture, least_log_evidence
from pyro_vae.posterior.repair.mode import fit_mode
from pyro_vae.posterior.repair.nuts import whitened_nuts
from pyro_vae.posterior.repair.proposals import Proposal, effective_draws, matched, round_draws
from pyro_vae.posterior.repair.resampling import resampled
from pyro_vae.posterior.repair.search import (
    NOT_LOOKED_AT,
    REFINED,
    REFINING_STEPS,
    STARTS,
    dispersed,
    find_modes,
)
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior
from pyro_vae.posterior.truth.chains import LARGEST_RHAT, SMALLEST_ESS_PER_CHAIN

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

STEPS = ("guide", "resample", "local", "nuts")

LARGEST_KHAT = 0.5
"""Of weights whose draws are believed, or the threshold of so few draws, if that is lower. Up to 0.7 weighted
averages can still be computed, but only below 0.5 is the variance of the weights finite, and with it the
error of resampled draws; a guide too narrow by half passes as 0.7 now and then (Yao, Vehtari, Simpson and
Gelman, 2018, "Yes, but did it work?: Evaluating variational inference")."""

UNWEIGHTED_SHARE = 0.95
"""Of draws that are believed without weights, how many are effective at least. A guide that is far too wide
has the best k̂, because reweighting mends it, but its own draws are wrong nevertheless. The means of q and
posterior differ by at most √(S / ESS − 1) standard deviations of q (Cauchy and Schwarz), here 0.23."""

SMALLEST_ESS = 4 * SMALLEST_ESS_PER_CHAIN
"""Effective candidates behind resampled draws, as many as of four chains, unless fewer draws are wanted."""

ENOUGH, MOST = 1.0, 16
"""Effective candidates for each draw that is kept by resampling, as far as a round before tells, and how many
candidates are taken for it at most."""

EASY = 0.4
"""Effective share of the draws of the first round with which a proposal needs no adaptation."""

HARDER = 2.0
"""How many times more candidates are taken where it did."""

GROUP = 5_000_000
"""Coordinates of candidates that are held at once."""

ROWS = 4096
"""An observation and a point each, that go through the model at once."""

NUTS_GROUP = 25
"""Observations that NUTS moves together: all of them share one step size."""


class Ladder:
    """What is known of each observation so far, and the climb of those that are left."""

    def __init__(self, pair: Pair, draws: int, seed: int, chunk: int, chains: int, warmup: int) -> None:
        n = pair.observations
        self.pair, self.draws, self.seed, self.chunk = pair, draws, seed, chunk
        self.chains, self.warmup = chains, warmup
        self.graphs = Graphs()
        self.sources: tuple[str, ...] = ()
        self.values: dict[str, Tensor] = {}
        self.log_weight = np.empty((n, draws))
        self.step = np.full(n, STEPS[0], dtype=f"<U{max(map(len, STEPS))}")
        self.believable = np.zeros(n, dtype=bool)
        self.modes = np.ones(n, dtype=np.int64)
        self.khat, self.ess = ({step: np.full(n, np.nan) for step in STEPS[:-1]} for _ in range(2))
        self.rhat, self.log_evidence, self.log_evidence_se = (np.full(n, np.nan) for _ in range(3))
        self.least_evidence = np.full(n, -np.inf)
        """The largest of what the steps so far say that the log evidence is at least."""

    def stand(self) -> None:
        """The guide's own draws, and how much they are worth."""
        for block in self.pair.blocks(self.draws, self.seed, self.chunk):
            self.log_weight[block.observations, block.draws] = block.log_weight.numpy().T
            for site, value in block.latents.items():
                if site not in self.values:
                    shape = (self.draws, self.pair.observations, *value.shape[2:])
                    self.values[site] = value.new_empty(shape)
                self.values[site][block.draws, block.observations] = value
        everyone = np.arange(self.pair.observations)
        self._judge("guide", everyone, self.log_weight, UNWEIGHTED_SHARE * self.draws)

    def climb(self, group: Rows, steps: Sequence[str]) -> Iterator[str]:
        """Look around some observations, then take the steps, each with those that the one before left."""
        values = {site: value[:, group] for site, value in self.values.items()}
        posterior, free = UnconstrainedPosterior.of(
            self.pair, group, values, min(self.chunk, ROWS), self.graphs
        )
        guide = matched(free, torch.zeros_like(free[..., 0]))
        refined = posterior.refined(guide.loc, guide.tril, steps=REFINING_STEPS, stop=REFINED)
        pool, self.sources = dispersed(posterior, free, self.values, group, self.seed)
        modes = find_modes(posterior, Proposal(*refined.normals), refined.elbo, pool)
        self.modes[group] = modes.counted()
        self.believable[group] &= modes.reached_by(free, torch.from_numpy(self.log_evidence[group])).numpy()
        weighted = matched(free, torch.from_numpy(self.log_weight[group].T))
        reached = _Reached(modes.mixture(), guide, weighted)
        left = np.flatnonzero(~self.believable[group])
        yield "guide"
        for step in steps:
            if len(left) == 0:
                return
            if step == "nuts":
                for few in np.array_split(left, -(-len(left) // NUTS_GROUP)):
                    self._move(posterior.part(few), reached.part(few), group[few])
            else:
                now = self._weigh(step, posterior.part(left), reached.part(left), group[left])
                reached = reached.replaced(left, now)
            yield step
            left = left[~self.believable[group[left]]]

    @property
    def latent_dim(self) -> int:
        """Latent numbers of one observation."""
        return sum(value[0, 0].numel() for value in self.values.values())

    def groups(self) -> Iterator[Rows]:
        """All observations, few enough at a time."""
        n = self.pair.observations
        size = self.latent_dim
        most = max(1, GROUP // (size * max(4 * self.draws, round_draws(size))))
        for start in range(0, n, most):
            yield np.arange(start, min(start + most, n))

    def report(self, index: Rows) -> xr.Dataset:
        """What happened to each observation."""

        def tried(values: dict[str, Array]) -> tuple[tuple[str, str], Array]:
            return ("tried", "observation"), np.stack(list(values.values()))

        return xr.Dataset(
            {
                "step": ("observation", self.step),
                "believable": ("observation", self.believable),
                "khat": tried(self.khat),
                "ess": tried(self.ess),
                "rhat": ("observation", self.rhat),
                "modes": ("observation", self.modes),
                "log_evidence": ("observation", self.log_evidence),
                "log_evidence_se": ("observation", self.log_evidence_se),
            },
            {"observation": index, "tried": list(self.khat)},
            {
                "khat_threshold": khat_threshold(self.draws),
                "latent_dim": self.latent_dim,
                "draws": self.draws,
                "looked_from": f"{STARTS} starts of an observation, from {', '.join(self.sources)}",
                "not_looked_at": NOT_LOOKED_AT,
            },
        )

    def _weigh(self, step: str, posterior: UnconstrainedPosterior, start: _Reached, rows: Rows) -> _Reached:
        """Resampled draws of a mixture that adapts itself, from where the step before or a fit left it."""
        generators = [np.random.default_rng([self.seed, STEPS.index(step), row]) for row in rows.tolist()]
        mixture = start.mixture
        if step == "local":
            mixture = Mixture.of(fit_mode(posterior, start.unit)).joined(mixture, 0.5)
        adapted = adapt_mixture(posterior, mixture, start.guide, generators, rounds=1)
        hard = (adapted.worth < EASY).nonzero()[:, 0]
        if len(hard):
            adapted = adapted.replaced(hard, self._twice(posterior, mixture, start, hard, generators))
        self.least_evidence[rows] = np.fmax(self.least_evidence[rows], adapted.least.numpy())
        for few, candidates in self._batches(adapted.worth):
            proposal = adapted.mixture.part(torch.from_numpy(few))
            self._draw(step, posterior.part(few), proposal, rows[few], candidates)
        return replace(start, mixture=adapted.mixture)

    def _twice(
        self,
        posterior: UnconstrainedPosterior,
        mixture: Mixture,
        start: _Reached,
        rows: Tensor,
        generators: Sequence[np.random.Generator],
    ) -> Adapted:
        """A mixture of two that adapt independently of each other: what one misses, the other may find."""
        mixture = mixture.part(rows).joined(Mixture.of(start.weighted.part(rows)), 0.5)
        one, other = (
            adapt_mixture(
                posterior.part(rows.numpy()),
                mixture,
                start.guide.part(rows),
                [generators[i] for i in rows.tolist()],
            )
            for _ in range(2)
        )
        return Adapted(
            one.mixture.joined(other.mixture, 0.5),
            torch.minimum(one.worth, other.worth) / HARDER,
            torch.maximum(one.least, other.least),
        )

    def _batches(self, worth: Tensor) -> Iterator[tuple[Rows, int]]:
        """Observations that take as many candidates, by the share of them that is effective, and how many."""
        quarters = np.ceil(4 * ENOUGH / worth.clamp_min(1e-9).numpy()).clip(4, 4 * MOST).astype(int)
        for count in np.unique(quarters):
            few = np.flatnonzero(quarters == count)
            candidates = self.draws * int(count) // 4
            size = max(1, GROUP // (candidates * self.latent_dim))
            for start in range(0, len(few), size):
                yield few[start : start + size], candidates

    def _draw(
        self, step: str, posterior: UnconstrainedPosterior, proposal: Mixture, rows: Rows, candidates: int
    ) -> None:
        """Judge candidates, and keep as many of them as draws are wanted, by their weights."""
        key = (self.seed, STEPS.index(step), 1)
        generators = [np.random.default_rng([*key, row]) for row in rows.tolist()]
        free = proposal.draw(candidates, generators)
        log_density = posterior.log_density(free)
        log_weight = (log_density - proposal.log_density(free)).numpy().T
        smooth = self._judge(step, rows, log_weight, min(SMALLEST_ESS, self.draws))
        chosen = resampled(smooth, log_density.numpy().T, self.draws, generators)
        self._keep(rows, posterior.values(free[chosen, torch.arange(len(rows), device="cpu")]))

    def _move(self, posterior: UnconstrainedPosterior, reached: _Reached, rows: Rows) -> None:
        """Chains from draws of every component, the guide's among them. Where one diverges, observations are
        taken apart until it is known whose it was."""
        each = 2 * max(-(-self.draws // self.chains), SMALLEST_ESS_PER_CHAIN)
        key = (self.seed, STEPS.index("nuts"), int(rows[0]))
        generators = [np.random.default_rng([*key[:2], row]) for row in rows.tolist()]
        starts = reached.mixture.joined(Mixture.of(reached.guide), GUIDE_SHARE).evenly()
        chains = whitened_nuts(
            posterior, reached.unit, starts.draw(self.chains, generators), each, self.warmup, key
        )
        if chains.divergences and len(rows) > 1:
            for half in np.array_split(np.arange(len(rows)), 2):
                self._move(posterior.part(half), reached.part(half), rows[half])
            return
        self.rhat[rows] = chains.rhat.numpy()
        enough = chains.ess.numpy() >= SMALLEST_ESS_PER_CHAIN * self.chains
        self.believable[rows] = (self.rhat[rows] <= LARGEST_RHAT) & enough & (chains.divergences == 0)
        self.step[rows] = "nuts"
        thin = np.random.default_rng(key).permutation(self.chains * each)[: self.draws]
        self._keep(rows, posterior.values(chains.free.flatten(0, 1)[thin]))

    def _judge(self, step: str, rows: Rows, log_weight: Array, least: float) -> Array:
        """Note what weights (observations, draws) say; smoothed, they are returned."""
        candidates = log_weight.shape[1]
        smooth, khat = pareto_smooth(log_weight)
        weights = torch.from_numpy(log_weight.T)
        ess = effective_draws(weights).numpy()
        trusted = khat <= min(LARGEST_KHAT, khat_threshold(candidates))
        self.step[rows], self.khat[step][rows], self.ess[step][rows] = step, khat, ess
        with np.errstate(all="ignore"):  # weights that are all zero or no numbers
            self.log_evidence[rows] = logsumexp(log_weight, axis=1) - np.log(candidates)
            relative = np.maximum(candidates / ess - 1, 0) / (candidates - 1)
            self.log_evidence_se[rows] = np.sqrt(relative)
            most = self.log_evidence[rows] + 4 * self.log_evidence_se[rows]
        self.believable[rows] = trusted & (ess >= least) & ~(most < self.least_evidence[rows])
        self.least_evidence[rows] = np.fmax(self.least_evidence[rows], least_log_evidence(weights).numpy())
        return smooth

    def _keep(self, rows: Rows, values: dict[str, Tensor]) -> None:
        for site, value in values.items():
            self.values[site][:, rows] = value


@dataclass(frozen=True)
class _Reached:
    """Where a group of observations stands: what is known of the posterior, and where the guide is."""

    mixture: Mixture
    guide: Proposal
    weighted: Proposal
    """With the moments of the guide's weighted draws."""

    @property
    def unit(self) -> Proposal:
        """With the moments of the mixture."""
        return self.mixture.moments()

    def part(self, rows: Rows) -> _Reached:
        at = torch.from_numpy(rows)
        return _Reached(self.mixture.part(at), self.guide.part(at), self.weighted.part(at))

    def replaced(self, rows: Rows, other: _Reached) -> _Reached:
        return replace(self, mixture=self.mixture.replaced(torch.from_numpy(rows), other.mixture))
