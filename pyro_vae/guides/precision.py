"""The precision that scales and densities are computed in."""

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to float32; return every other tensor as it is.

    float16 ends at log σ = 11 and bfloat16 has three digits, too few to tell log σ from a neighbour one
    percent away, so a network may run in either while σ and log q are computed here.

    Parameters
    ----------
    x : Tensor
        Any shape, any floating dtype.

    Returns
    -------
    Tensor
        float32 where ``x`` was narrower, otherwise ``x`` itself.

    Examples
    --------
    >>> import torch
    >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.dtype.is_floating_point and x.dtype.itemsize < 4 else x


def exact_log_prob(distribution: Any, value: Tensor) -> Tensor:
    """The log density of a value, of counts in float64.

    Torch's own distributions of counts subtract logs of factorials: of a million counts float32 knows the
    result to ± 1 nat. Their parameters are taken for what they are, and the density of these is exact.

    Parameters
    ----------
    distribution
        Any; those of counts that come from torch or Pyro are evaluated in float64, also where they are
        ``to_event``, ``mask``-ed or zero-inflated.
    value
        Where.

    Returns
    -------
    Tensor
        Nats; float64 of counts, otherwise as the distribution has it.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> million = torch.tensor(1e6)
    >>> exact_log_prob(dist.Poisson(million), million)
    tensor(-7.8267, dtype=torch.float64)
    """
    if not _counts(distribution) or value.dtype == torch.float64:
        return distribution.log_prob(value)  # type: ignore[no-any-return]
    return _in_float64(distribution).log_prob(value.double())  # type: ignore[no-any-return]


COUNTS = (
    dist.BetaBinomial,
    dist.Binomial,
    dist.DirichletMultinomial,
    dist.GammaPoisson,
    dist.Multinomial,
    dist.NegativeBinomial,
    dist.Poisson,
)
"""Densities that are differences of logs of factorials."""


def _counts(distribution: Any) -> bool:
    """Whether it is such a distribution, or made of one."""
    if not type(distribution).__module__.startswith(("torch.distributions.", "pyro.distributions.")):
        return False
    parts = (held for held in vars(distribution).values() if isinstance(held, Distribution))
    return isinstance(distribution, COUNTS) or any(map(_counts, parts))


def _in_float64(distribution: Any) -> Any:
    """The same distribution, with its tensors and those of the distributions that it holds in float64."""
    twin = copy.copy(distribution)
    for name, held in vars(distribution).items():
        if isinstance(held, Tensor) and held.is_floating_point():
            setattr(twin, name, held.double())
        elif isinstance(held, Distribution):
            setattr(twin, name, _in_float64(held))
    return twin
