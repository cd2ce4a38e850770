"""Better draws where the guide's cannot be believed: a ladder from reweighting to NUTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor

from pyro_vae.guides.refining.density import Graphs
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.posterior.arguments import check_request, require_count
from pyro_vae.posterior.drawing import CHUNK, Pair
from pyro_vae.posterior.importance import FEWEST_ADVICE, FEWEST_DRAWS
from pyro_vae.posterior.pareto import khat_threshold, pareto_smooth
from pyro_vae.posterior.preparation import prepare, select
from pyro_vae.posterior.reference import (
    LARGEST_RHAT,
    SMALLEST_ESS_PER_CHAIN,
    convergence_of,
    posterior_tree,
)
from pyro_vae.posterior.repair.mixture import GUIDE_SHARE, Adapted, Mixture, adapt_mixture, least_log_evidence
from pyro_vae.posterior.repair.mode import fit_mode
from pyro_vae.posterior.repair.nuts import whitened_nuts
from pyro_vae.posterior.repair.proposals import Proposal, effective_draws, matched, round_draws
from pyro_vae.posterior.repair.search import FROM_EACH, REFINED, REFINING_STEPS, Modes, find_modes, stretched
from pyro_vae.posterior.unconstrained import UnconstrainedPosterior
from pyro_vae.progress import progress_bar

__all__ = ["repair"]

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Draws = dict[str, Tensor]

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

SMALLEST_SHARE = 0.01
"""Of the mass of a mode that draws must have visited."""

ENOUGH, MOST = 1.0, 16
"""Effective candidates for each draw that is kept by resampling, as far as a round before tells, and how many
candidates are taken for it at most."""

EASY = 0.4
"""Effective share of the draws of the first round with which a proposal needs no adaptation."""

HARDER = 2.0
"""How many times more candidates are taken where it did."""

FINEST = 1e-3
"""Nats that the rounding of a density may come to; computations are in double precision where it is more."""

ROWS = 4096
"""An observation and a point each, that go through the model at once."""

GROUP = 5_000_000
"""Coordinates of candidates that are held at once."""

NUTS_GROUP = 25
"""Observations that NUTS moves together: all of them share one step size."""


def repair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    draws: int = 1000,
    seed: int = 0,
    *,
    observations: Sequence[int] | None = None,
    steps: Sequence[str] = ("resample", "local", "nuts"),
    chains: int = 4,
    warmup: int = 300,
    chunk: int = CHUNK,
    progress: bool = False,
) -> xr.DataTree:
    """Posterior draws that can be believed, as cheaply as each observation allows.

    First all look around: draws from the prior, draws for other observations and the guide's own, stretched
    away from their centre, are where a search for modes elsewhere starts. Observations with a good k̂, at
    most 0.5, whose guide needs no weights (ESS at least 95% of the draws) and has visited every mode found,
    keep the guide's draws. The others climb, each step with those only that the step before left, and
    diagnosed by draws that no earlier decision has seen:

    1. ``resample``: importance resampling from a mixture of multivariate Student-t's on the reals that adapts
       itself to the observation. It starts with the guide's weighted draws and the modes found, and its
       components follow its own weighted draws, round after round (Cappé, Douc, Guillin, Marin and Robert,
       2008, "Adaptive importance sampling in general mixture classes"). A fifth of the last candidates come
       from where the guide is, so that what it had visited is not lost;
    2. ``local``: the same, starting also with the mode of this one posterior and the curvature there;
    3. ``nuts``: NUTS on the latents, whitened by the covariance found so far, its chains started in different
       components. Believed if R-hat is at most 1.01 and the effective sample size at least 100 per chain.

    Resampled draws are believed if k̂ is at most 0.5, at least 400 candidates (or as many as there are draws,
    if fewer) are effective, and the evidence is not lower than an earlier step had shown. What no step
    repairs keeps the draws of the last step tried and is marked.

    A mode to which none of the starts leads stays unseen, and draws without it are believed: one that is
    narrow beside the others in many dimensions, or far from all that prior, guide and other posteriors cover.

    Parameters
    ----------
    model, guide, data, draws, seed, chunk
        As in :func:`~pyro_vae.posterior.importance.diagnose`.
    observations
        Which to draw for; by default all.
    steps
        Which steps of the ladder to take, in this order. NUTS takes seconds to minutes for ten observations.
    chains, warmup
        Of NUTS.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xr.DataTree
        Group ``posterior`` as in :func:`~pyro_vae.posterior.tree.from_pyro_svi`; group ``repair`` over
        ``observation``: ``step``, from which the draws come; ``believable``; ``khat`` and ``ess`` of the
        weights over (tried, observation), NaN where a step was not tried; ``rhat`` of NUTS; ``modes``, how
        many were found that hold 1% or more; ``log_evidence`` in nats and ``log_evidence_se``, as in
        ``diagnose`` but from the weights of the last step that had any, so far better where the guide is
        bad. Attributes ``khat_threshold`` (of ``draws``) and ``latent_dim``.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.diagnose`, for an unknown step, and for a discrete latent.

    Examples
    --------
    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     right, wrong = 0.5**0.5, 0.1
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, torch.where(x > 0, right, wrong)))
    >>> tree = repair(model, guide, torch.tensor([1.0, -1.0]))
    >>> tree["repair"]["step"].values
    array(['guide', 'resample'], dtype='<U8')
    >>> [round(sd.item(), 1) for sd in tree["posterior"]["z"].std(("chain", "draw"))]  # both √½
    [0.7, 0.7]
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk, least=FEWEST_DRAWS, advice=FEWEST_ADVICE)
    _check_steps(steps, chains, warmup)
    index, subset = select(data, observations)
    pair = _ready(model, guide, subset)
    for module in modules_of(pair.model):
        module.requires_grad_(False)  # a copy; only latents and proposals move
    ladder = _Ladder(pair, draws, seed, chunk, chains, warmup)
    with progress_bar(len(index), "believable posteriors", enabled=progress) as show:
        ladder.stand()
        for group in ladder.groups():
            for step in ladder.climb(group, steps):
                show(int(ladder.believable.sum()), step)
    tree = posterior_tree({site: value[None] for site, value in ladder.values.items()}, index, "repair", seed)
    tree["repair"] = xr.DataTree(dataset=ladder.report(index))
    return tree


def _ready(model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Pair:
    """The pair in its own precision, or in double where single cannot tell the densities apart."""
    pair = prepare(model, guide, data, dtypes=(None,))
    block = pair.block(slice(0, pair.observations if pair.whole else 1), slice(0, 3), 0)
    resolution = torch.finfo(next(iter(block.latents.values())).dtype).eps
    largest = float(torch.maximum(block.log_prior.abs(), block.reconstruction.abs()).max())
    return pair if largest * resolution < FINEST else prepare(model, guide, data)


class _Ladder:
    """What is known of each observation so far, and the climb of those that are left."""

    def __init__(self, pair: Pair, draws: int, seed: int, chunk: int, chains: int, warmup: int) -> None:
        n = pair.observations
        self.pair, self.draws, self.seed, self.chunk = pair, draws, seed, chunk
        self.chains, self.warmup = chains, warmup
        self.graphs = Graphs()
        self.values: Draws = {}
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
        pool = self._pool(posterior, free, group)
        modes = find_modes(posterior, Proposal(*refined.normals), refined.elbo, pool)
        self.modes[group] = (modes.share > SMALLEST_SHARE).sum(1)
        self.believable[group] &= _all_reached(modes, free, self.log_evidence[group])
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
            },
        )

    def _pool(self, posterior: UnconstrainedPosterior, free: Tensor, rows: Rows) -> Tensor:
        """Dispersed starts, (starts, observations, size)."""
        key = [STEPS.index("guide"), 1]
        generators = [np.random.default_rng([self.seed, *key, row]) for row in rows.tolist()]
        parts = [stretched(free, generators)]
        with suppress(Exception):  # a prior or a likelihood that cannot be drawn from
            parts.append(posterior.from_prior(FROM_EACH, self.seed, *key))
        n = self.pair.observations
        if n > 1:
            others = np.stack(
                [
                    (row + generator.integers(1, n, size=FROM_EACH)) % n
                    for row, generator in zip(rows.tolist(), generators, strict=True)
                ],
                axis=1,
            )
            draw = np.stack([g.integers(self.draws, size=FROM_EACH) for g in generators], axis=1)
            parts.append(
                posterior.coordinates({site: value[draw, others] for site, value in self.values.items()})
            )
        return torch.cat(parts)

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
        chosen = _resample(smooth, log_density.numpy().T, self.draws, generators)
        self._keep(rows, posterior.values(free[chosen, torch.arange(len(rows), device="cpu")]))

    def _move(self, posterior: UnconstrainedPosterior, reached: _Reached, rows: Rows) -> None:
        """Chains from draws of every component, the guide's among them."""
        each = 2 * max(-(-self.draws // self.chains), SMALLEST_ESS_PER_CHAIN)
        key = (self.seed, STEPS.index("nuts"), int(rows[0]))
        generators = [np.random.default_rng([*key[:2], row]) for row in rows.tolist()]
        starts = reached.mixture.joined(Mixture.of(reached.guide), GUIDE_SHARE).evenly()
        free = whitened_nuts(
            posterior, reached.unit, starts.draw(self.chains, generators), each, self.warmup, key
        )
        values = posterior.values(free.flatten(0, 1))
        chained = {site: value.unflatten(0, free.shape[:2]) for site, value in values.items()}
        convergence = convergence_of(posterior_tree(chained, rows, "nuts", self.seed))
        self.rhat[rows] = convergence["rhat"].max("latent").values
        enough = convergence["ess"].min("latent").values >= SMALLEST_ESS_PER_CHAIN * self.chains
        self.believable[rows] = (self.rhat[rows] <= LARGEST_RHAT) & enough
        self.step[rows] = "nuts"
        thin = np.random.default_rng(key).permutation(self.chains * each)[: self.draws]
        self._keep(rows, {site: value[thin] for site, value in values.items()})

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

    def _keep(self, rows: Rows, values: Draws) -> None:
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


def _all_reached(modes: Modes, free: Tensor, log_evidence: Array) -> NDArray[np.bool_]:
    """Whether the draws (draws, observations, size) lie in every mode about as often as its mass asks."""
    reached = np.ones(free.shape[1], dtype=bool)
    size = free.shape[-1]
    radius = size + 3 * (2 * size) ** 0.5
    for proposal, log_mass in zip(modes.proposals[1:], modes.log_mass.T[1:], strict=True):
        share = np.exp(np.minimum(log_mass.numpy() - log_evidence, 0.0))
        inside = (proposal.to_white(free).square().sum(-1) <= radius).double().mean(0).numpy()
        reached &= (share < SMALLEST_SHARE) | (inside >= 0.2 * share)
    return reached


def _resample(
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


def _check_steps(steps: Sequence[str], chains: int, warmup: int) -> None:
    if isinstance(steps, str):
        raise TypeError(f"steps is {steps!r}; give a sequence, ({steps!r},)")
    unknown = [step for step in steps if step not in STEPS[1:]]
    if unknown:
        raise ValueError(f"steps has {unknown[0]!r}; the steps are {list(STEPS[1:])}")
    if "nuts" in steps:
        require_count("chains", chains, 2, ", so that they can agree")
    require_count("warmup", warmup, 1)
