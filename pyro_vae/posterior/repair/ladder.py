"""Better draws where the guide's cannot be believed: a ladder from reweighting to NUTS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyro_vae.arguments import brief, require_count
from pyro_vae.devices import making_tensors_on
from pyro_vae.guides.latents.masks import hides
from pyro_vae.pairs.isolation import modules_of
from pyro_vae.posterior.arguments import check_request
from pyro_vae.posterior.evaluation.drawing import CHUNK, Pair
from pyro_vae.posterior.evaluation.preparation import prepare, prepare_joint
from pyro_vae.posterior.evaluation.selection import select
from pyro_vae.posterior.evaluation.sites import PairError, SharedLatentError, sample_sites
from pyro_vae.posterior.importance import FEWEST_ADVICE, FEWEST_DRAWS
from pyro_vae.posterior.repair.climbing import STEPS, Ladder
from pyro_vae.posterior.repair.together import SITE, Together
from pyro_vae.posterior.truth.reference import draws_tree
from pyro_vae.progress import progress_bar

FEWEST_ROWS = 64
"""Points that go through the model together, each with all data, where the data are many."""

FINEST = 1e-3
"""Nats that the rounding of a density may come to; computations are in double precision where it is more."""


@torch.inference_mode(mode=False)
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
       components. Believed if R-hat of all latents and of the log density is at most 1.01, the effective
       sample size of bulk and tails at least 100 per chain, and no transition diverged.

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

    Where observations share latents, everything is one posterior, of at most a thousand numbers, and takes
    these steps as one observation does: draws of shared latents and of those of each observation belong
    together, and the report has no dimension ``observation``. ``observations`` cannot be chosen then.

    Returns
    -------
    xr.DataTree
        Group ``posterior`` as in :func:`~pyro_vae.posterior.tree.from_pyro_svi`; group ``repair`` over
        ``observation``: ``step``, from which the draws come; ``believable``; ``khat`` and ``ess`` of the
        weights over (tried, observation), NaN where a step was not tried; ``rhat`` of NUTS; ``modes``, how
        many were found that hold 1% or more; ``log_evidence`` in nats and ``log_evidence_se``, as in
        ``diagnose`` but from the weights of the last step that had any, so far better where the guide is
        bad. Attributes ``khat_threshold`` (of ``draws``), ``latent_dim``,
        ``looked_from`` and ``not_looked_at``: where the search for modes started, and what it cannot see.

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
    try:
        ladder = Ladder(ready(model, guide, subset), draws, seed, chunk, chains, warmup)
        together = None
    except SharedLatentError as error:
        if observations is not None:
            raise ValueError(
                "observations names some of the data, but all of them share latents; leave it out"
            ) from error
        together = Together.of(prepare_joint(model, guide, data), draws, seed)
        ladder = together_ladder(together, draws, seed, chunk, chains, warmup)
    for module in modules_of(ladder.pair.model, *([together.pair.model] if together else [])):
        module.requires_grad_(False)  # a copy; only latents and proposals move
    n = ladder.pair.observations
    here = making_tensors_on(torch.device("cpu"))  # whatever the user's default is; the model has its own
    threads = ladder.pair.threads(min(chunk, draws * n))
    with here, threads, progress_bar(n, "believable posteriors", enabled=progress) as show:
        if together is None:
            ladder.judge_guide()
        for group in ladder.groups():
            for step in ladder.climb(group, steps):
                show(int(ladder.believable.sum()), step)
    if together is None:
        values, report = ladder.values, ladder.report(index)
    else:
        values = together.values(ladder.values[SITE])
        report = ladder.report(np.zeros(1, dtype=np.int64)).isel(observation=0, drop=True)
    shared = () if together is None else together.shared
    tree = draws_tree({site: value[None] for site, value in values.items()}, index, "repair", seed, shared)
    tree["repair"] = xr.DataTree(dataset=report)
    return tree


def together_ladder(
    together: Together, draws: int, seed: int, chunk: int, chains: int, warmup: int
) -> Ladder:
    """The climb of the one posterior of everything, which stands where the guide's draws are."""
    rows = max(FEWEST_ROWS, chunk // together.pair.observations)
    ladder = Ladder(together.one, draws, seed, rows, chains, warmup)
    ladder.begin_with({SITE: together.free}, together.log_weight.numpy())
    return ladder


def ready(model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Pair:
    """The pair in its own precision, or in double where single cannot tell the densities apart. Raises
    PairError if a latent is summed over, or hidden for some of the observations."""
    pair = prepare(model, guide, data, dtypes=(None,))
    _refuse_what_cannot_move(pair)
    block = pair.block(slice(0, pair.observations if pair.whole else 1), slice(0, 3), 0)
    resolution = torch.finfo(next(iter(block.latents.values())).dtype).eps
    largest = float(torch.maximum(block.log_prior.abs(), block.reconstruction.abs()).max())
    return pair if largest * resolution < FINEST else prepare(model, guide, data)


def _refuse_what_cannot_move(pair: Pair) -> None:
    if pair.summed:
        name = min(pair.summed)
        raise PairError(
            f"latent '{name}' is discrete and summed over, and only continuous latents are moved here; "
            "marginalize it in the model, fix it by poutine.condition(model, data={'" + name + "': ...}), or "
            "ask diagnose, which sums over it"
        )
    step = pair.observations if pair.whole else CHUNK
    for start in range(0, pair.observations, step):
        with pair.evaluation(0):
            trace = pair.run_model(tuple(arg[start : start + step] for arg in pair.args), 1)
        for name, site in sample_sites(trace).items():
            if not site["is_observed"] and hides(site):
                raise PairError(
                    f"latent '{name}' is masked, so that it has no posterior where it is hidden; leave those "
                    "observations out of the data"
                )


def _check_steps(steps: Sequence[str], chains: int, warmup: int) -> None:
    if isinstance(steps, str):
        raise TypeError(f"steps is {brief(steps)}; give a sequence, ({brief(steps)},)")
    unknown = [step for step in steps if step not in STEPS[1:]]
    if unknown:
        raise ValueError(f"steps has {unknown[0]!r}; the steps are {list(STEPS[1:])}")
    if "nuts" in steps:
        require_count("chains", chains, 2, ", so that they can agree")
    require_count("warmup", warmup, 1)
