"""NUTS in coordinates in which every posterior is roughly a standard Normal."""

from __future__ import annotations

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_vae.posterior.repair.proposals import Proposal
from pyro_vae.posterior.repair.unconstrained import UnconstrainedPosterior

__all__ = ["whitened_nuts"]


def whitened_nuts(
    posterior: UnconstrainedPosterior,
    unit: Proposal,
    start: Tensor,
    draws: int,
    warmup: int,
    key: tuple[int, ...],
) -> Tensor:
    """Draws of NUTS, (chains, draws, observations, size), one chain from each start (chains, observations,
    size).

    NUTS moves v in u = loc + tril · v, which is to give it a dense mass matrix for each observation, so that
    observations of different scales and correlations can share one step size.
    """

    def energy(at: dict[str, Tensor]) -> Tensor:
        return -posterior.log_density(unit.from_white(at["v"])[None]).sum()

    by_chain = []
    for chain, first in enumerate(unit.to_white(start)):
        with posterior.pair.evaluation(*key, chain), torch.enable_grad():
            sampler = MCMC(
                NUTS(potential_fn=energy),
                num_samples=draws,
                warmup_steps=warmup,
                initial_params={"v": first},
                disable_progbar=True,
            )
            sampler.run()
            by_chain.append(unit.from_white(sampler.get_samples()["v"].detach()))
    return torch.stack(by_chain)
