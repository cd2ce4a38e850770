"""NUTS on the latents of some observations, in coordinates in which each posterior is round."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import xarray as xr
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_vae.posterior.repair.proposals import Proposal
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior


class Chains(NamedTuple):
    """Draws of NUTS and how its chains agree."""

    free: Tensor
    """Coordinates, (chains, draws, observations, size)."""
    rhat: Tensor
    ess: Tensor
    """The largest R-hat of an observation's coordinates and its log density, which is how well energies are
    explored, and their smallest effective sample size, of the bulk or the tails: (observations)."""
    divergences: int
    """Of all chains after warm-up."""


def whitened_nuts(
    posterior: UnconstrainedPosterior,
    unit: Proposal,
    start: Tensor,
    draws: int,
    warmup: int,
    key: tuple[int, ...],
) -> Chains:
    """One chain of NUTS from each start (chains, observations, size).

    NUTS moves v in u = loc + tril · v, which is to give it a dense mass matrix for each observation, so that
    observations of different scales and correlations can share one step size.
    """

    def energy(at: dict[str, Tensor]) -> Tensor:
        return _Energy.apply(at["v"], posterior, unit)  # type: ignore[no-any-return, no-untyped-call]

    by_chain, divergences = [], 0
    for chain, first in enumerate(unit.to_white(start)):
        with posterior.evaluation(*key, chain), torch.enable_grad():
            sampler = MCMC(
                NUTS(potential_fn=energy),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"v": first},
                disable_progbar=True,
            )
            sampler.run()
            by_chain.append(unit.from_white(sampler.get_samples()["v"].detach()))
        divergences += sum(len(found) for found in sampler.diagnostics()["divergences"].values())
    free = torch.stack(by_chain)
    with posterior.evaluation():
        log_density = posterior.log_density(free.flatten(0, 1)).unflatten(0, free.shape[:2])
    return Chains(free, *_agreement(torch.cat([free, log_density[..., None]], dim=-1)), divergences)


class _Energy(torch.autograd.Function):
    """−Σ log density at white coordinates, whose gradient comes with it."""

    @staticmethod
    def forward(context: Any, white: Tensor, posterior: UnconstrainedPosterior, unit: Proposal) -> Tensor:
        value, gradient = posterior.value_and_gradient(unit.from_white(white)[None])
        context.save_for_backward(torch.einsum("nij,ni->nj", unit.tril, gradient[0]))
        return -value.sum()

    @staticmethod
    def backward(context: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = context.saved_tensors
        return -above * slope, None, None


def _agreement(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Largest R-hat and smallest effective sample size of each observation's numbers (chains, draws,
    observations, numbers)."""
    import arviz_stats

    arviz: Any = arviz_stats  # untyped in part
    chains = xr.Dataset({"v": (("chain", "draw", "observation", "number"), numbers.numpy())})
    effective = [arviz.ess(chains, method=method)["v"].min("number").values for method in ("bulk", "tail")]
    rhat = arviz.rhat(chains)["v"].max("number").values
    return torch.from_numpy(rhat), torch.minimum(*map(torch.from_numpy, effective))
