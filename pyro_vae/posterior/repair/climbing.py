"""The climb of each observation, from the guide's draws to draws that can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.guides.refining.captured import Graphs
from pyro_vae.guides.refining.steps import Normals
from pyro_vae.naming import named
from pyro_vae.posterior.evaluation.drawing import Pair
from pyro_vae.posterior.pareto import khat_threshold
from pyro_vae.posterior.repair.edges import Edge, look_beyond
from pyro_vae.posterior.repair.judging import LARGEST_KHAT, Verdict, judged
from pyro_vae.posterior.repair.mixture import GUIDE_SHARE, NEW_SHARE, Mixture
from pyro_vae.posterior.repair.mode import fit_mode
from pyro_vae.posterior.repair.nuts import whitened_nuts
from pyro_vae.posterior.repair.proposals import Proposal, matched, round_draws
from pyro_vae.posterior.repair.reached import Group, Reached, Rows, adapted_twice
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

STEPS = ("guide", "resample", "local", "nuts")

UNWEIGHTED_SHARE = 0.95
"""Of draws that are believed without weights, how many are effective at least. A guide that is far too wide
has the best k̂, because reweighting mends it, but its own draws are wrong nevertheless. The means of q and
posterior differ by at most √(S / ESS − 1) standard deviations of q (Cauchy and Schwarz), here 0.23."""

SMALLEST_ESS = 4 * SMALLEST_ESS_PER_CHAIN
"""Effective candidates behind resampled draws, as many as of four chains, unless fewer draws are wanted."""

ENOUGH, MOST = 1.0, 16
"""Effective candidates for each draw that is kept by resampling, as far as a round before tells, and how many
candidates are taken for it at most."""

EASY, HARD = 0.4, 0.3
"""Effective share of the first candidates above which they are enough, and below which their mixture adapts
itself to the posterior."""

NEARLY_NORMAL = 0.25
"""Nats between evidence and ELBO of the refined Normal, the KL of the one from the posterior, up to which a
posterior has no edges to look beyond."""

FEWEST_CANDIDATES = int(SMALLEST_ESS / EASY)
"""So that as many can be effective as belief asks for."""

GROUP = 5_000_000
"""Coordinates of candidates that are held at once."""

ROWS = 2048
"""An observation and a point each, that go through the model at once."""

NUTS_GROUP = 25
"""Observations that NUTS moves together: all of them share one step size."""


class Ladder:
    """What is known of each observation so far, and the climb of those that are left."""

    def __init__(self, pair: Pair, draws: int, seed: int, chunk: int, chains: int, warmup: int) -> None:
        n = pair.observations
        self.pair, self.draws, self.seed, self.chunk = pair, draws, seed, chunk
        self.chains, self.warmup = chains, warmup
        self.graphs = Graphs(ahead=n * draws)
        self.sources: tuple[str, ...] = ()
        self.values: dict[str, Tensor] = {}
        self.log_weight = np.empty((n, draws))
        self.step = np.full(n, STEPS[0], dtype=f"<U{max(map(len, STEPS))}")
        self.believable = np.zeros(n, dtype=bool)
        self.modes = np.ones(n, dtype=np.int64)
        self.khat, self.ess = ({step: np.full(n, np.nan) for step in STEPS[:-1]} for _ in range(2))
        self.rhat, self.log_evidence, self.log_evidence_se = (np.full(n, np.nan) for _ in range(3))
        self.elbo = np.full(n, np.nan)
        """Of the refined Normals."""
        self.least_evidence = np.full(n, -np.inf)
        """The largest of what the steps so far say that the log evidence is at least."""

    def judge_guide(self) -> None:
        """Draw from the guide, and see how much its draws are worth."""
        for block in self.pair.blocks(self.draws, self.seed, self.chunk):
            self.log_weight[block.observations, block.draws] = block.log_weight.numpy().T
            for site, value in block.latents.items():
                if site not in self.values:
                    shape = (self.draws, self.pair.observations, *value.shape[2:])
                    self.values[site] = value.new_empty(shape)
                self.values[site][block.draws, block.observations] = value
        self.begin_with(self.values, self.log_weight)

    def begin_with(self, values: dict[str, Tensor], log_weight: Array) -> None:
        """Begin with draws by site, (draws, observations, ...), and their weights, (observations, draws)."""
        self.values, self.log_weight = values, log_weight
        everyone = np.arange(self.pair.observations)
        self._note("guide", everyone, judged(log_weight), UNWEIGHTED_SHARE * self.draws)

    def posterior(self, group: Rows) -> tuple[UnconstrainedPosterior, Tensor]:
        """Of some observations, and the draws at hand as its coordinates."""
        values = {site: value[:, group] for site, value in self.values.items()}
        return UnconstrainedPosterior.of(self.pair, group, values, min(self.chunk, ROWS), self.graphs)

    def climb(
        self,
        group: Rows,
        steps: Sequence[str],
        given: tuple[UnconstrainedPosterior, Tensor] | None = None,
        near: Normals | None = None,
    ) -> Iterator[str]:
        """Look around some observations, then take the steps, each with those that the one before left.

        ``given`` is their :meth:`posterior`, and ``near`` what comes closer to it than the guide, if these
        are known."""
        posterior, free = self.posterior(group) if given is None else given
        with posterior.evaluation(draws=self.draws):
            reached = self._looked_around(posterior, free, group, near)
        left = np.flatnonzero(~self.believable[group])
        yield "guide"
        for step in steps:
            if len(left) == 0:
                return
            if step == "nuts":
                for few in np.array_split(left, -(-len(left) // NUTS_GROUP)):
                    self._move(posterior.part(few), reached.part(few), group[few])
            else:
                with posterior.evaluation(draws=self.draws):
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
        most = max(1, GROUP // (size * max(self.draws, round_draws(size))))
        for start in range(0, n, most):
            yield np.arange(start, min(start + most, n))

    def report(self, index: Rows) -> xr.Dataset:
        """What happened to each observation."""

        def tried(values: dict[str, Array]) -> tuple[tuple[str, str], Array]:
            return ("tried", "observation"), np.stack(list(values.values()))

        found = xr.Dataset(
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
        return named(found)

    def _looked_around(
        self, posterior: UnconstrainedPosterior, free: Tensor, rows: Rows, near: Normals | None
    ) -> Reached:
        """Modes that the guide's draws have missed make them unbelievable."""
        guide = matched(free, torch.zeros_like(free[..., 0]))
        start = Normals(guide.loc, guide.tril)
        if near is not None:
            known = torch.isfinite(near.loc).all(-1) & torch.isfinite(near.factor).flatten(1).all(-1)
            start = near.full().where(known, start)
        refined = posterior.refined(*start, steps=REFINING_STEPS, stop=REFINED)
        self.elbo[rows] = refined.elbo.numpy()
        pool, self.sources = dispersed(posterior, free, self.values, rows, self.seed)
        modes = find_modes(posterior, Proposal(*refined.normals), refined.elbo, pool)
        self.modes[rows] = modes.counted()
        self.believable[rows] &= modes.reached_by(free, torch.from_numpy(self.log_evidence[rows])).numpy()
        return Reached(modes.mixture(), guide, free, torch.from_numpy(self.log_weight[rows].T))

    def _weigh(self, step: str, posterior: UnconstrainedPosterior, start: Reached, rows: Rows) -> Reached:
        """Resampled draws of a mixture from where the step before or a fit left it; again, and more of them,
        where few are effective; and of one that has adapted itself where hardly any are."""
        generators = [np.random.default_rng([self.seed, STEPS.index(step), row]) for row in rows.tolist()]
        group, mixture = Group(posterior, rows, generators), start.mixture
        if step == "local":
            mixture = Mixture.of(fit_mode(posterior, start.unit)).joined(mixture, 0.5)
        first = mixture.joined(Mixture.of(start.guide), GUIDE_SHARE)
        worth, mixture = self._draw(step, group, first, mixture, np.full(len(rows), ENOUGH))
        trusted = self.khat[step][rows] <= LARGEST_KHAT
        again = np.flatnonzero(trusted & (worth >= HARD) & (worth < EASY))
        if len(again):
            at = torch.from_numpy(again)
            _, seen = self._draw(step, group.part(again), first.part(at), mixture.part(at), worth[again])
            mixture = mixture.replaced(at, seen)
        hard = np.flatnonzero(~self.believable[rows] | (worth < HARD))
        if len(hard) == 0:
            return start
        at, group = torch.from_numpy(hard), group.part(hard)
        adapted = adapted_twice(group, mixture.part(at), start.part(hard))
        self.least_evidence[group.rows] = np.fmax(self.least_evidence[group.rows], adapted.least.numpy())
        _, seen = self._draw(step, group, adapted.mixture, adapted.mixture, adapted.worth.numpy())
        return replace(start, mixture=start.mixture.replaced(at, seen))

    def _draw(
        self, step: str, group: Group, proposal: Mixture, mixture: Mixture, worth: Array
    ) -> tuple[Array, Mixture]:
        """Judge as many candidates as it takes if that share of them is effective, and keep draws of them by
        their weights. Returned is which share really was, and the mixture with a component beyond the
        candidates where there is more of the posterior."""
        found, odd, edges = np.empty(len(worth)), [], []
        for few, candidates in self._batches(worth):
            part, own = group.part(few), proposal.part(torch.from_numpy(few))
            free = own.draw(candidates, part.generators)
            log_density = part.posterior.log_density(free)
            log_weight = log_density - own.log_density(free)
            verdict = judged(log_weight.numpy().T)
            self._note(step, part.rows, verdict, min(SMALLEST_ESS, self.draws))
            chosen = resampled(verdict.smooth, log_density.numpy().T, self.draws, part.generators)
            kept = free[chosen, torch.arange(len(few), device="cpu")]
            self._keep(part.rows, part.posterior.values(kept))
            found[few] = verdict.worth
            normal = verdict.log_evidence - self.elbo[part.rows] <= NEARLY_NORMAL
            which = np.flatnonzero(self.believable[part.rows] & ~normal)
            if len(which):
                at = torch.from_numpy(which)
                odd.append(few[which])
                edges.append(Edge.of(own.part(at), free[:, at], log_weight[:, at]))
        if not odd:
            return found, mixture
        where = np.concatenate(odd)
        part = group.part(where)
        beyond = look_beyond(part.posterior, Edge.joined(edges), part.generators)
        more = beyond.more.nonzero()[:, 0]
        self.believable[part.rows[more.numpy()]] = False
        at = torch.from_numpy(where)[more]
        wider = mixture.part(at).joined(Mixture.of(beyond.visited.part(more)), NEW_SHARE)
        return found, mixture.replaced(at, wider) if len(at) else mixture

    def _batches(self, worth: Array) -> Iterator[tuple[Rows, int]]:
        """Observations that take as many candidates, by the share of them that is effective, and how many."""
        quarters = np.ceil(4 * ENOUGH / worth.clip(1e-9)).clip(4, 4 * MOST).astype(int)
        for count in np.unique(quarters):
            few = np.flatnonzero(quarters == count)
            candidates = max(self.draws * int(count) // 4, FEWEST_CANDIDATES)
            size = max(1, GROUP // (candidates * self.latent_dim))
            for start in range(0, len(few), size):
                yield few[start : start + size], candidates

    def _move(self, posterior: UnconstrainedPosterior, reached: Reached, rows: Rows) -> None:
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
        with posterior.evaluation(draws=self.draws):
            self._keep(rows, posterior.values(chains.free.flatten(0, 1)[thin]))

    def _note(self, step: str, rows: Rows, verdict: Verdict, effective: float) -> None:
        """What weights say of some observations."""
        self.step[rows], self.khat[step][rows], self.ess[step][rows] = step, verdict.khat, verdict.ess
        self.log_evidence[rows] = verdict.log_evidence
        self.log_evidence_se[rows] = verdict.log_evidence_se
        self.believable[rows] = verdict.believable(effective, self.least_evidence[rows])
        self.least_evidence[rows] = np.fmax(self.least_evidence[rows], verdict.least)

    def _keep(self, rows: Rows, values: dict[str, Tensor]) -> None:
        for site, value in values.items():
            self.values[site][:, rows] = value
