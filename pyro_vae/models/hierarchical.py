"""A variational autoencoder with two latent layers."""

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import brief, positive_integer, positive_integers, require_module
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.likelihoods import Likelihood, Normal
from pyro_vae.models.priors import Prior, as_prior
from pyro_vae.models.scale_map import LogScale, ScaleMap


class HierarchicalVAE(PyroModule):
    r"""Two latent layers: :math:`p(z_2)\, p(z_1 \mid z_2)\, p(x \mid z_1)`.

    .. math:: z_1 \mid z_2 \sim \mathrm{Normal}(\mu(z_2),\, g(r(z_2)))

    Sites "z2", "z1" and "x", in the plate "data" (dim −1). p(z₁|z₂) keeps an analytic KL term with a Normal
    guide.

    Parameters
    ----------
    decoder
        From z₁ to the data, as for `VAE`.
    latent_decoder
        From z₂ (batch, latent_dims[1]) to (batch, 2 × latent_dims[0]): the locations, then the raw scales.
    latent_dims
        Sizes of z₁ and z₂.
    likelihood
        As for `VAE`.
    prior
        p(z₂), as for `VAE`.
    scale
        The scale map g of p(z₁|z₂); the default is σ = exp(raw).

    References
    ----------
    Sønderby, Raiko, Maaløe, Sønderby and Winther (2016), Ladder Variational Autoencoders.

    Examples
    --------
    >>> from pyro_vae.models import MLPDecoder
    >>> decoder, latent_decoder = MLPDecoder(4, [16], 64), MLPDecoder(2, [16], 4, outputs=2)
    >>> model = HierarchicalVAE(decoder, latent_decoder, (4, 2), "bernoulli")
    >>> model.sample(3).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_decoder: nn.Module,
        latent_dims: tuple[int, int],
        likelihood: Likelihood | str,
        *,
        prior: Prior = "normal",
        scale: ScaleMap | None = None,
    ) -> None:
        super().__init__()
        require_module("decoder", decoder)
        require_module("latent_decoder", latent_decoder)
        if not isinstance(latent_dims, Sequence) or len(latent_dims) != 2:
            raise ValueError(f"latent_dims is {brief(latent_dims)}; give two sizes, of z₁ and of z₂")
        self.latent_dims = positive_integers("latent_dims", latent_dims)
        self.prior = as_prior(prior, latent_dims[1])
        layer = Normal(scale=LogScale() if scale is None else scale, dispersion="predicted")
        self.layer = Conditional(latent_decoder, latent_dims[1], layer)
        if self.layer.event_shape != (latent_dims[0],):
            raise ValueError(
                f"latent_decoder gives locations and raw scales of shape {tuple(self.layer.event_shape)}; "
                f"latent_dims[0]={latent_dims[0]} needs 2 × {latent_dims[0]} outputs."
            )
        self.observation = Conditional(decoder, latent_dims[0], likelihood)
        self.event_shape = self.observation.event_shape

    def forward(self, x: Tensor) -> Tensor:
        """Sample z₂ and z₁ for every row of ``x`` (n, ...), and observe ``x``."""
        self.observation.require_event_shape(x)
        prior = self.prior()
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", prior)
            z1 = pyro.sample("z1", self.layer(z2))
            observed: Tensor = pyro.sample("x", self.decode(z1), obs=x)
        return observed

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        return f"latent_dims={self.latent_dims}, likelihood={self.likelihood!r}"

    @property
    def likelihood(self) -> Likelihood:
        """What turns the decoder's output into p(x|z)."""
        likelihood: Likelihood = self.observation.likelihood
        return likelihood

    def decode(self, z1: Tensor) -> TorchDistribution:
        """p(x|z₁) for latents (..., latent_dims[0]), with any leading dimensions."""
        distribution: TorchDistribution = self.observation(z1)
        return distribution

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` draws of x from the model, (n, ...)."""
        z2 = self.prior().sample(torch.Size([positive_integer("n", n)]))
        x: Tensor = self.decode(self.layer(z2).sample()).sample()
        return x
