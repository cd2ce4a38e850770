"""The variational autoencoder's model: a prior, a decoder and a likelihood."""

__all__ = ["VAE"]

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.models import likelihoods
from pyro_vae.models.likelihoods import Likelihood


class VAE(PyroModule):  # type: ignore[misc]
    """p(z) p(x|z) with one latent vector per observation; called ``model(x)``.

    Sites "z" and "x" in the plate "data" (dim −1).

    Parameters
    ----------
    decoder
        Any module from (batch, latent_dim) to (batch, ...).
    latent_dim
        Size of the latent.
    likelihood
        One of `pyro_vae.models.likelihoods`, or a name where no argument is needed.
    prior
        "normal".
    """

    def __init__(
        self, decoder: nn.Module, latent_dim: int, likelihood: Likelihood | str, *, prior: str = "normal"
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.likelihood = likelihoods.get(likelihood) if isinstance(likelihood, str) else likelihood
        self.decoder = decoder
        self.register_buffer("_origin", torch.zeros(latent_dim), persistent=False)
        with torch.no_grad():
            event_shape = decoder(torch.zeros(1, latent_dim)).shape[1:]
        dispersion = self.likelihood.initial_dispersion(event_shape)
        self.dispersion = None if dispersion is None else nn.Parameter(dispersion)

    def forward(self, x: Tensor) -> Tensor:
        """Sample "z" and observe ``x`` (batch, ...)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self._origin, 1.0).to_event(1))
            value: Tensor = pyro.sample("x", self.decode(z), obs=x)
        return value

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x|z) for latents (..., latent_dim) with any leading dimensions."""
        output = self.decoder(z.reshape(-1, self.latent_dim))
        output = output.reshape(z.shape[:-1] + output.shape[1:])
        return self.likelihood.distribution(output, self.dispersion, event_dim=output.dim() - z.dim() + 1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw ``n`` observations from the model."""
        z = dist.Normal(self._origin, 1.0).expand([n, self.latent_dim]).sample()
        x: Tensor = self.decode(z).sample()
        return x
