"""One arrow of a model: a network and a likelihood make p(·|z)."""

from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import kind, positive_integer, require_module, require_rows, require_tensor
from pyro_vae.copies import deep_copy
from pyro_vae.models import likelihoods
from pyro_vae.models.likelihoods import Likelihood


def over_leading_dims(network: Callable[[Tensor], Tensor], value: Tensor, event_dim: int = 1) -> Tensor:
    """Call a network that knows one batch dimension on a value with any number of them.

    Convolutions refuse (particles, batch, channels, height, width); so the leading dimensions are flattened
    into one, and unflattened in what comes out.

    Examples
    --------
    >>> over_leading_dims(nn.Conv2d(1, 4, 3), torch.zeros(5, 2, 1, 8, 8), event_dim=3).shape
    torch.Size([5, 2, 4, 6, 6])
    """
    batch_shape = value.shape[: value.dim() - event_dim]
    if len(batch_shape) == 1:
        return network(value)
    output = network(value.reshape(-1, *value.shape[len(batch_shape) :]))
    return output.reshape(*batch_shape, *output.shape[1:])


class Conditional(PyroModule):
    """p(·|z), for latents with any leading dimensions.

    Parameters
    ----------
    network
        Any module from (batch, latent_dim) to (batch, features × outputs) or
        (batch, channels × outputs, height, width), with ``outputs`` as the likelihood says.
    latent_dim
        Size of z.
    likelihood
        A likelihood, or its name where it needs no argument.

    Attributes
    ----------
    event_shape : torch.Size
        Shape of one observation.

    Raises
    ------
    ValueError
        If the network does not give one output per latent, or not a multiple of ``outputs``.
    """

    def __init__(self, network: nn.Module, latent_dim: int, likelihood: Likelihood | str) -> None:
        super().__init__()
        require_module("network", network)
        self.network = network
        self.likelihood = _as_likelihood(likelihood)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.event_shape = self._probe(latent_dim)
        dispersion = self.likelihood.initial_dispersion(self.event_shape)
        self.dispersion = None if dispersion is None else nn.Parameter(dispersion)

    def _probe(self, latent_dim: int) -> torch.Size:
        """The shape of one observation, from one call of the network at the origin."""
        parameter = next(self.network.parameters(), torch.empty(0))
        origin = torch.zeros(1, latent_dim, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            # on a copy in evaluation mode: no dropout noise, no batch norm of a single row
            twin = deep_copy(self.network).eval()
            try:
                shape = twin(origin).shape
            except RuntimeError as error:
                raise ValueError(
                    f"latent_dim is {latent_dim}, and the decoder does not take latents of shape "
                    f"(1, {latent_dim}) ({error}); give the size that it takes"
                ) from error
        outputs = self.likelihood.outputs
        if len(shape) < 2 or shape[0] != 1 or shape[1] % outputs:
            raise ValueError(
                f"The decoder gives shape {tuple(shape)} for latents of shape (1, {latent_dim}), and "
                f"{self.likelihood} needs (1, features × {outputs}) or "
                f"(1, channels × {outputs}, height, width)"
            )
        return torch.Size([shape[1] // outputs, *shape[2:]])

    def require_event_shape(self, x: Tensor) -> None:
        """Raise a ValueError unless the rows of ``x`` have the shape of one observation."""
        require_rows("x", x, self.event_shape, "the decoder gives observations")

    def forward(self, z: Tensor) -> TorchDistribution:
        """The distribution at latents (..., latent_dim)."""
        require_tensor("z", z)
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; give (..., {self.latent_dim})")
        output = over_leading_dims(self.network, z)
        return self.likelihood.distribution(output, self.dispersion, event_dim=len(self.event_shape))


def _as_likelihood(likelihood: Likelihood | str) -> Likelihood:
    if isinstance(likelihood, type) and issubclass(likelihood, Likelihood):
        raise TypeError(f"likelihood is the class {likelihood.__name__}; call it, {likelihood.__name__}()")
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood is {kind(likelihood)}; give one of pyro_vae.models.likelihoods or its name "
            f"({', '.join(likelihoods.names())})"
        )
    return likelihoods.get(likelihood)
