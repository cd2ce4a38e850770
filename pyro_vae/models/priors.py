"""Priors p(z): modules that, called, give the distribution of one latent vector."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

from pyro_vae.arguments import brief, positive_integer, require_tensor
from pyro_vae.models.likelihoods import Normal
from pyro_vae.models.scale_map import LogScale, ScaleMap


class StandardNormal(nn.Module):
    """Independent standard Normals.

    Examples
    --------
    >>> StandardNormal(3)().log_prob(torch.zeros(3))
    tensor(-2.7568)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # buffers move with the model; constants, so not part of its state
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        """The distribution of one latent vector."""
        prior: TorchDistribution = dist.Normal(self.loc, self.scale).to_event(1)
        return prior


class FixedPrior(nn.Module):
    """Any Pyro distribution as it is; its tensors follow the model's device and dtype.

    Parameters
    ----------
    distribution
        Of event shape (latent_dim,), or a univariate one of batch shape () or (latent_dim,).

    Examples
    --------
    >>> FixedPrior(dist.Laplace(0.0, 1.0), latent_dim=2)().event_shape
    torch.Size([2])
    """

    def __init__(self, distribution: TorchDistribution, latent_dim: int) -> None:
        super().__init__()
        if distribution.event_shape == () and distribution.batch_shape in {(), (latent_dim,)}:
            distribution = distribution.expand([latent_dim]).to_event(1)
        if distribution.batch_shape != () or distribution.event_shape != (latent_dim,):
            raise ValueError(
                f"prior has batch shape {tuple(distribution.batch_shape)} and event shape "
                f"{tuple(distribution.event_shape)}; give () and ({latent_dim},)"
            )
        self.distribution: TorchDistribution = _map_tensors(_refuse_gradient, distribution)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedPrior":
        # what nn.Module.to, .double and .cuda go through: a distribution is no module, so it is moved here
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.distribution = _map_tensors(fn, self.distribution)
        return self

    def forward(self) -> TorchDistribution:
        """The distribution of one latent vector."""
        return self.distribution


def _map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with ``fn`` applied to every tensor that a distribution or transform in it holds."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(fn, item) for item in value)
    if isinstance(value, (Distribution, Transform)) and not isinstance(value, nn.Module):
        mapped = copy.copy(value)
        mapped.__dict__ = {name: _map_tensors(fn, item) for name, item in vars(value).items()}
        return mapped
    if isinstance(value, nn.Module):
        raise ValueError(_HOLDS_PARAMETERS)
    return value


def _refuse_gradient(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        raise ValueError(_HOLDS_PARAMETERS)
    return tensor


_HOLDS_PARAMETERS = (
    "prior holds parameters, and a distribution cannot register them; "
    "give a torch.nn.Module whose forward() returns the distribution"
)


class _Mixture(dist.MixtureSameFamily):  # type: ignore[misc]
    """A mixture whose support is that of its components, a constraint that Pyro can transform."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Mixture":
        shape = torch.Size(batch_shape)
        return _Mixture(
            self.mixture_distribution.expand(shape),
            self.component_distribution.expand((*shape, self._num_component)),
            validate_args=False,
        )

    @property
    def support(self) -> Constraint:
        support: Constraint = self.component_distribution.support
        return support


class MixturePrior(nn.Module):
    r"""A learned mixture of diagonal Normals.

    .. math:: p(z) = \sum_k \pi_k \, \mathrm{Normal}(z \mid m_k, s_k)

    Parameters
    ----------
    latent_dim
        Size of z.
    components
        Number of components K.
    scale
        The scale map of s; every s starts at 1.

    Examples
    --------
    >>> MixturePrior(2, components=10)().sample([5]).shape
    torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, components: int, *, scale: ScaleMap | None = None) -> None:
        super().__init__()
        positive_integer("latent_dim", latent_dim)
        positive_integer("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        # components that start at one place would stay together
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.raw_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self._component = Normal(scale=LogScale() if scale is None else scale)

    def forward(self) -> TorchDistribution:
        """The distribution of one latent vector."""
        components = self._component.distribution(self.loc, self.raw_scale)
        return _Mixture(dist.Categorical(logits=self.logits), components)


class VampPrior(nn.Module):
    r"""The guide's own posterior, averaged over learned pseudo-observations.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    The guide is built on the model and the model on this prior, so the posterior may be given afterwards:
    ``prior.posterior = guide.posterior``.

    Parameters
    ----------
    latent_dim
        Size of z.
    pseudo_inputs
        Where the u_k start: K observations, for example a few rows of the data.
    posterior
        From observations (K, ...) to the distribution of their latents, of batch shape (K,) and event shape
        (latent_dim,). Its parameters stay with the guide: they are not among this module's.

    Raises
    ------
    RuntimeError
        If the prior is used before it has a posterior.

    References
    ----------
    Tomczak and Welling (2018), VAE with a VampPrior.

    Examples
    --------
    >>> head = nn.Linear(64, 2)
    >>> prior = VampPrior(2, torch.rand(10, 64), lambda x: dist.Normal(head(x), 1.0).to_event(1))
    >>> prior().sample([5]).shape
    torch.Size([5, 2])
    """

    logits: Tensor

    def __init__(
        self,
        latent_dim: int,
        pseudo_inputs: Tensor,
        posterior: Callable[[Tensor], TorchDistribution] | None = None,
    ) -> None:
        super().__init__()
        require_tensor("pseudo_inputs", pseudo_inputs)
        if len(pseudo_inputs) == 0:
            raise ValueError(f"pseudo_inputs has shape {tuple(pseudo_inputs.shape)}; give at least one")
        if posterior is not None and not callable(posterior):
            raise TypeError(f"posterior is {brief(posterior)}; give a function such as guide.posterior")
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self.register_buffer("logits", torch.zeros(len(pseudo_inputs)), persistent=False)
        self.posterior = posterior
        self._asked = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VampPrior":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # a copy of the model in another dtype holds its own copy of the guide, which nobody else converts
        guide = getattr(self.posterior, "__self__", self.posterior)
        if isinstance(guide, nn.Module):
            guide._apply(fn, recurse)
        return self

    def forward(self) -> TorchDistribution:
        """The distribution of one latent vector."""
        if self.posterior is None:
            raise RuntimeError("VampPrior has no posterior yet: set prior.posterior = guide.posterior")
        if self._asked:
            # a guide may run the model to find its latents before it can answer: the shape is all it needs
            standard: TorchDistribution = StandardNormal(self.latent_dim).to(self.pseudo_inputs)()
            return standard
        self._asked = True
        try:
            components = self.posterior(self.pseudo_inputs)
        finally:
            self._asked = False
        return _Mixture(dist.Categorical(logits=self.logits), components)


Prior = TorchDistribution | nn.Module | Literal["normal"]


def as_prior(prior: Prior, latent_dim: int) -> nn.Module:
    """The module that gives p(z): from the word "normal", a distribution, or such a module itself. Raises
    ValueError if a distribution does not fit latents of size ``latent_dim``, or holds parameters; TypeError
    if ``prior`` is none of the three."""
    if isinstance(prior, nn.Module):
        return prior
    if isinstance(prior, TorchDistributionMixin):
        return FixedPrior(prior, latent_dim)
    if prior == "normal":
        return StandardNormal(latent_dim)
    raise TypeError(
        f"prior is {brief(prior)}; give 'normal', a Pyro distribution, "
        "or a module whose forward() returns one"
    )
