"""Annealed importance sampling (Neal, 2001): a reference for evidence that shares nothing with refinement."""

import itertools
import math

import torch
from torch import Tensor

from pyro_vae.models import VAE


def annealed_evidence(
    model: VAE, x: Tensor, *, chains: int = 64, temperatures: int = 600, leaps: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """log p(x) of each observation and its standard error, from the standard Normal prior to the posterior.

    Hamiltonian steps with a step size for each observation that follows the acceptance rate.
    """
    generator = torch.Generator().manual_seed(seed)
    n, size = len(x), model.latent_dim
    z = torch.randn(chains, n, size, generator=generator)

    def tempered(z: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
        at = z.clone().requires_grad_()
        likelihood = model.decode(at).log_prob(x)
        height = power * likelihood - 0.5 * at.square().sum(-1)
        (slope,) = torch.autograd.grad(height.sum(), at)
        return likelihood.detach(), height.detach(), slope

    # closely spaced where the likelihood begins to count
    powers = torch.sigmoid(torch.linspace(-7.0, 7.0, temperatures + 1))
    powers = ((powers - powers[0]) / (powers[-1] - powers[0])).tolist()
    weight, step = torch.zeros(chains, n), torch.full((n,), 0.3)
    for before, power in itertools.pairwise(powers):
        likelihood, height, slope = tempered(z, power)
        weight += (power - before) * likelihood
        momentum = torch.randn(z.shape, generator=generator)
        energy = height - 0.5 * momentum.square().sum(-1)
        moved, size_of = z, step[:, None]
        for _ in range(leaps):
            momentum = momentum + 0.5 * size_of * slope
            moved = moved + size_of * momentum
            _, height, slope = tempered(moved, power)
            momentum = momentum + 0.5 * size_of * slope
        accept = (
            torch.rand(chains, n, generator=generator).log()
            < height - 0.5 * momentum.square().sum(-1) - energy
        )
        z = torch.where(accept[..., None], moved, z)
        step = step * torch.where(accept.double().mean(0).to(step) > 0.7, 1.05, 0.92)
    evidence = weight.logsumexp(0) - math.log(chains)
    normalized = weight.softmax(0)
    return evidence, ((chains * normalized.square().sum(0) - 1) / (chains - 1)).sqrt()
