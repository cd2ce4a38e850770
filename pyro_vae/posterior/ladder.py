"""Better draws where the guide's cannot be believed: a ladder from reweighting to NUTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_vae.posterior.arguments import check_request, require_count
from pyro_vae.posterior.drawing import CHUNK, Pair
from pyro_vae.posterior.importance import FEWEST_ADVICE, FEWEST_DRAWS, khat_threshold, pareto_smooth
from pyro_vae.posterior.local import fit_local
from pyro_vae.posterior.preparation import prepare, select
from pyro_vae.posterior.reference import (
    LARGEST_RHAT,
    SMALLEST_ESS_PER_CHAIN,
    convergence_of,
    nuts,
    posterior_tree,
)
from pyro_vae.svi.progress import progress_bar

__all__ = ["repair"]

Array = NDArray[np.float64]
Draws = dict[str, Tensor]

STEPS = ("guide", "resample", "local", "nuts")
LARGEST_KHAT = 0.5
"""Of draws that are believed. Up to the usual 0.7 weighted averages are still good, but draws are not yet:
beyond 0.5 the weights have infinite variance, and a guide too narrow by half passes as 0.7 now and then
(Yao, Vehtari, Simpson and Gelman, 2018, "Yes, but did it work?: Evaluating variational inference")."""

MORE = 10
"""Candidates for each draw that is kept by resampling."""

GROUP = 20_000_000
"""Latent numbers that are held at once while resampling."""

NUTS_GROUP = 10
"""Observations that NUTS moves together: more would share one step size among too many."""


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

    Observations whose k̂ is at most 0.5 (or the threshold of so few draws, if that is lower) keep the
    guide's draws and cost nothing more. The others climb, each step on those only that the step before left,
    and diagnosed again:

    1. ``resample``: ten times the draws from the guide, resampled by Pareto-smoothed importance weights;
    2. ``local``: the best member of the guide's family for this observation alone, found by optimization
       (:func:`~pyro_vae.posterior.gaps.inference_gaps`), its draws resampled in the same way;
    3. ``nuts``: NUTS on the latents, believed if R-hat is at most 1.01 and the effective sample size at
       least 100 per chain.

    What no step repairs keeps the draws of the last step tried and is marked.

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
        ``observation``: ``step``, from which the draws come; ``believable``; ``khat`` over (tried,
        observation), NaN where a step was not tried; ``rhat`` of NUTS. Attributes ``khat_threshold`` (of
        ``draws``) and ``latent_dim``.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.importance.diagnose`, for an unknown step, and, where ``local`` is
        needed, if the guide's latents are not Normal underneath.

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
    array(['guide', 'local'], dtype='<U8')
    >>> [round(sd.item(), 1) for sd in tree["posterior"]["z"].std(("chain", "draw"))]  # both √½
    [0.7, 0.7]
    """
    check_request(model, guide, draws=draws, seed=seed, chunk=chunk, least=FEWEST_DRAWS, advice=FEWEST_ADVICE)
    _check_steps(steps, chains, warmup)
    index, subset = select(data, observations)
    pair = prepare(model, guide, subset)
    ladder = _Ladder(pair, draws, seed, chunk)
    with progress_bar(len(index), "believable posteriors", enabled=progress) as show:
        for step in ("guide", *steps):
            if step == "nuts":
                ladder.nuts(chains, warmup)
            else:
                ladder.reweigh(step)
            show(int(ladder.believable.sum()), step)
    tree = posterior_tree({site: value[None] for site, value in ladder.values.items()}, index, "repair", seed)
    tree["repair"] = xr.DataTree(dataset=ladder.report(index))
    return tree


class _Ladder:
    """The state of a repair: the draws so far, and whom to believe."""

    def __init__(self, pair: Pair, draws: int, seed: int, chunk: int) -> None:
        n = pair.observations
        self.pair, self.draws, self.seed, self.chunk = pair, draws, seed, chunk
        self.values: Draws = {}
        self.latent_dim = 0
        self.step = np.full(n, STEPS[0], dtype=f"<U{max(map(len, STEPS))}")
        self.believable = np.zeros(n, dtype=bool)
        self.khat = {step: np.full(n, np.nan) for step in STEPS[:-1]}
        self.rhat = np.full(n, np.nan)

    def reweigh(self, step: str) -> None:
        """Draws from the guide or from local posteriors, resampled unless they are the guide's own."""
        own = step == "guide"
        candidates = self.draws * (1 if own else MORE)
        for group in self._groups(candidates):
            pair, rows = self._part(group)
            if step == "local":
                pair = fit_local(pair, seed=self._seed(step, group))
            values, log_weight = _draw(pair, candidates, self._seed(step, group), self.chunk)
            smooth, khat = pareto_smooth(log_weight[rows])
            values = {site: value[:, rows] for site, value in values.items()}
            if not own:
                values = _resample(values, smooth, self.draws, self._seed(step, group))
            self._keep(group, values, step, khat <= _threshold(candidates))
            self.khat[step][group] = khat

    def nuts(self, chains: int, warmup: int) -> None:
        """Chains that start at draws of the step before."""
        for group in self._groups(self.draws, at_most=NUTS_GROUP):
            part = replace(self.pair, args=tuple(arg[torch.as_tensor(group)] for arg in self.pair.args))
            start = [
                {site: value[chain, group] for site, value in self.values.items()} for chain in range(chains)
            ]
            each = max(self.draws, SMALLEST_ESS_PER_CHAIN)
            chained, _ = nuts(part, each, warmup, chains, self._seed("nuts", group), start=start)
            convergence = convergence_of(posterior_tree(chained, np.asarray(group), "nuts", self.seed))
            rhat = convergence["rhat"].max("latent").values
            enough = convergence["ess"].min("latent").values >= SMALLEST_ESS_PER_CHAIN * chains
            thin = np.random.default_rng(self.seed).permutation(chains * each)[: self.draws]
            values = {site: value.flatten(0, 1)[thin] for site, value in chained.items()}
            self._keep(group, values, "nuts", (rhat <= LARGEST_RHAT) & enough)
            self.rhat[group] = rhat

    def report(self, index: NDArray[np.int64]) -> xr.Dataset:
        """What happened to each observation."""
        return xr.Dataset(
            {
                "step": ("observation", self.step),
                "believable": ("observation", self.believable),
                "khat": (("tried", "observation"), np.stack(list(self.khat.values()))),
                "rhat": ("observation", self.rhat),
            },
            {"observation": index, "tried": list(self.khat)},
            {
                "khat_threshold": khat_threshold(self.draws),
                "latent_dim": self.latent_dim,
                "draws": self.draws,
            },
        )

    def _groups(self, candidates: int, *, at_most: int = 1024) -> Iterator[NDArray[np.int64]]:
        """Positions of the observations that are left, few enough at a time."""
        left = np.flatnonzero(~self.believable)
        size = min(at_most, max(1, GROUP // (candidates * max(self.latent_dim, 1))))
        for start in range(0, len(left), size):
            yield left[start : start + size]

    def _part(self, group: NDArray[np.int64]) -> tuple[Pair, NDArray[np.int64]]:
        """A pair with these observations, and where in it they are."""
        if self.pair.whole:
            return self.pair, group
        args = tuple(arg[torch.as_tensor(group)] for arg in self.pair.args)
        return replace(self.pair, args=args), np.arange(len(group))

    def _keep(
        self, group: NDArray[np.int64], values: Draws, step: str, believable: NDArray[np.bool_]
    ) -> None:
        for site, value in values.items():
            if site not in self.values:
                self.values[site] = value.new_empty(self.draws, len(self.step), *value.shape[2:])
            self.values[site][:, group] = value
        self.latent_dim = sum(value[0, 0].numel() for value in self.values.values())
        self.step[group] = step
        self.believable[group] = believable

    def _seed(self, step: str, group: NDArray[np.int64]) -> int:
        """Another stream for every step and group: no step sees the draws that condemned the one before."""
        return self.seed + 1_000_003 * STEPS.index(step) + int(group[0])


def _threshold(draws: int) -> float:
    return min(LARGEST_KHAT, khat_threshold(draws))


def _draw(pair: Pair, draws: int, seed: int, chunk: int) -> tuple[Draws, Array]:
    """Draws (draws, observations, …) and log weights (observations, draws)."""
    values: Draws = {}
    log_weight = np.empty((pair.observations, draws))
    for block in pair.blocks(draws, seed, chunk):
        log_weight[block.observations, block.draws] = block.log_weight.numpy().T
        for site, value in block.latents.items():
            into = values.setdefault(site, value.new_empty(draws, pair.observations, *value.shape[2:]))
            into[block.draws, block.observations] = value
    return values, log_weight


def _resample(values: Draws, log_weight: Array, draws: int, seed: int) -> Draws:
    """Systematic resampling, independent for each observation, in random order."""
    generator = np.random.default_rng(seed)
    chosen = []
    for row in log_weight:
        finite = np.nan_to_num(np.exp(row))
        total = np.cumsum(finite / finite.sum()) if finite.sum() > 0 else np.linspace(0, 1, len(row) + 1)[1:]
        points = (np.arange(draws) + generator.uniform()) / draws
        chosen.append(generator.permutation(np.searchsorted(total, points).clip(max=len(row) - 1)))
    index = torch.as_tensor(np.stack(chosen, axis=1))
    rows = torch.arange(len(log_weight))
    return {site: value[index, rows] for site, value in values.items()}


def _check_steps(steps: Sequence[str], chains: int, warmup: int) -> None:
    if isinstance(steps, str):
        raise TypeError(f"steps is {steps!r}; give a sequence, ({steps!r},)")
    unknown = [step for step in steps if step not in STEPS[1:]]
    if unknown:
        raise ValueError(f"steps has {unknown[0]!r}; the steps are {list(STEPS[1:])}")
    if "nuts" in steps:
        require_count("chains", chains, 2, ", so that they can agree")
    require_count("warmup", warmup, 1)
