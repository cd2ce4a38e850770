"""The model of a variational autoencoder: a prior, a decoder and a likelihood."""

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer, require_finite, require_module
from pyro_vae.arrays import plain_array
from pyro_vae.models.conditional import Conditional
from pyro_vae.models.likelihoods import Likelihood
from pyro_vae.models.networks import HasOutputBias
from pyro_vae.models.priors import Prior, as_prior


class VAE(PyroModule):
    r"""One latent vector per observation: :math:`p(x, z) = p(z)\, p(x \mid \mathrm{decoder}(z))`.

    A Pyro model, called ``model(x)``: the latent site "z" and the observed site "x" lie in the plate "data"
    (dim −1, of size ``len(x)``). It runs under SVI, ELBOModule, vectorized particles, Predictive and NUTS.

    Parameters
    ----------
    decoder
        Any module from (batch, latent_dim) to (batch, features × outputs), or to
        (batch, channels × outputs, height, width). Most likelihoods need one output per feature; see
        ``likelihood.outputs``.
    latent_dim
        Size of z.
    likelihood
        One of `pyro_vae.models.likelihoods`, or its name where it needs no argument.
    prior
        "normal" for the standard Normal, a Pyro distribution over vectors of size latent_dim, or a module
        whose ``forward()`` returns one, such as `MixturePrior` and `VampPrior`.

    Raises
    ------
    TypeError
        If ``decoder`` is no module, or ``likelihood`` or ``prior`` is none of what is listed.
    ValueError
        If ``latent_dim`` is no positive integer, or decoder, likelihood and prior do not fit together.

    Attributes
    ----------
    latent_dim : int
        Size of z.
    event_shape : torch.Size
        Shape of one observation.
    prior, observation
        Modules: ``prior()`` is p(z), ``observation(z)`` is p(x|z).

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes.

    Examples
    --------
    >>> from pyro_vae.models import MLPDecoder
    >>> model = VAE(MLPDecoder(2, [16], 64), 2, "bernoulli")
    >>> model(torch.ones(5, 64)).shape
    torch.Size([5, 64])
    >>> model.decode(torch.zeros(3, 5, 2)).batch_shape
    torch.Size([3, 5])
    >>> model.sample(4).shape
    torch.Size([4, 64])
    """

    def __init__(
        self, decoder: nn.Module, latent_dim: int, likelihood: Likelihood | str, *, prior: Prior = "normal"
    ) -> None:
        super().__init__()
        require_module("decoder", decoder)
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        self.prior = as_prior(prior, latent_dim)
        self.observation = Conditional(decoder, latent_dim, likelihood)
        self.event_shape = self.observation.event_shape

    def forward(self, x: Tensor) -> Tensor:
        """Sample z for every row of ``x`` (n, ...), and observe ``x``."""
        self.observation.require_event_shape(x)
        prior = self.prior()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            observed: Tensor = pyro.sample("x", self.decode(z), obs=x)
        return observed

    def extra_repr(self) -> str:
        """Part of ``repr``."""
        return f"latent_dim={self.latent_dim}, likelihood={self.likelihood!r}"

    @property
    def likelihood(self) -> Likelihood:
        """What turns the decoder's output into p(x|z)."""
        likelihood: Likelihood = self.observation.likelihood
        return likelihood

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x|z) for latents (..., latent_dim), with any leading dimensions."""
        distribution: TorchDistribution = self.observation(z)
        return distribution

    def init_output(self, x: Tensor) -> None:
        """Start the decoder's output bias where each feature has its mean in ``x`` (n, ...).

        Features that are rarely on are then not learned one gradient step at a time.

        Raises
        ------
        TypeError
            If the decoder has no ``set_output_bias``, as the decoders of this package have.
        ValueError
            If the rows of ``x`` have another shape than the decoder's observations, or there is none.
        """
        decoder = self.observation.network
        if not isinstance(decoder, HasOutputBias):
            raise TypeError(
                f"{type(decoder).__name__} has no set_output_bias(output); "
                "define it on the decoder so that its output can start at a given value"
            )
        self.observation.require_event_shape(x)
        require_finite("x", plain_array(x, "x"))
        if len(x) == 0:
            raise ValueError(f"x has shape {tuple(x.shape)}; give at least one observation")
        decoder.set_output_bias(self.likelihood.marginal_output(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """``n`` draws of x from the model, (n, ...)."""
        shape = torch.Size([positive_integer("n", n)])
        x: Tensor = self.decode(self.prior().sample(shape)).sample()
        return x
