"""Encoder guides for any Pyro model: diagonal Normal, full-covariance Normal, normalizing flow."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import ConditionalAffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_vae.arguments import positive_integer
from pyro_vae.guides import scales
from pyro_vae.guides.encoder_guide import EncoderGuide
from pyro_vae.guides.families import DIAGONAL, FULL
from pyro_vae.guides.latents.shared import Globals
from pyro_vae.guides.precision import at_least_float32


class AmortizedNormal(EncoderGuide):
    r"""A Normal with independent coordinates for the latents of each observation, from an encoder's features.

    .. math::
        q(z \mid x) = \mathcal{N}(\mu(x), \operatorname{diag} \sigma(x)^2), \qquad
        \mu = W h(x) + b, \quad \sigma = g(V h(x) + c)

    with features h, the encoder's output, and a scale map g. A latent with a constrained support (positive,
    interval, simplex, …) is the image of such a Normal under ``biject_to(support)``, as its
    ``TransformedDistribution``. A real latent is sampled from a
    :class:`~pyro_vae.guides.normal.LogScaleNormal` directly, so that the analytic KL of
    ``TraceMeanField_ELBO`` applies.

    The guide finds the latents itself: those in the model's observation plate, any number, any event shape,
    in further plates within an observation or not. The plate may be ``plate("data", len(x))``, with another size in every call, or part of a
    larger whole (``subsample=``, ``subsample_size=``), in which case the guide scales as the model does.
    Where the plate itself draws the part, the encoder returns features of the whole data.

    Latents outside that plate are drawn by the autoguide that ``globals`` names. Where the model masks a
    latent, its density in the guide is left out, too; discrete latents that are marked to be enumerated are
    left to ``TraceEnum_ELBO``.

    Parameters
    ----------
    model
        A Pyro model. The guide takes the same arguments.
    encoder
        A module that takes what the model takes, ``encoder(x)`` or ``encoder(x, y)``, and returns features
        (batch, H). The guide adds the linear heads for μ and σ.
    scale
        A name of :func:`pyro_vae.guides.scales.names` or a map.
    init_scale
        σ of every coordinate before training, in unconstrained space.
    globals
        For latents that all observations share: ``"AutoNormal"`` or another of our autoguides, or what makes
        one of a model. By default such latents are refused.

    Raises
    ------
    TypeError
        If ``encoder`` is no module or returns something other than one floating-point tensor.
    ValueError
        If features are not (batch, H); if ``scale`` does not reach ``init_scale``; if the model has no
        latent, or one that is discrete, outside the observation plate or in further plates.

    Notes
    -----
    The heads are made in the first call. Call the guide once before making an optimizer or wrapping it in
    ``DistributedDataParallel``; ``load_state_dict`` needs no such call.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes. Rezende, Mohamed and Wierstra (2014),
    Stochastic Backpropagation and Approximate Inference in Deep Generative Models.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), rate), obs=x[:, 0])
    >>> guide = AmortizedNormal(model, torch.nn.Linear(3, 16), scale="logvar", init_scale=0.5)
    >>> x = torch.randn(5, 3)
    >>> sorted((name, tuple(draw.shape)) for name, draw in guide(x).items())
    [('rate', (5,)), ('z', (5, 2))]
    >>> guide.posterior(x)["z"].stddev[0]
    tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    family = DIAGONAL


class AmortizedMultivariateNormal(EncoderGuide):
    r"""A Normal with full covariance for each observation, over all its latents together.

    .. math::
        q(z \mid x) = \mathcal{N}(\mu(x), L(x) L(x)^\top), \qquad L = \operatorname{diag}(\sigma(x))\, A(x)

    with A unit lower triangular, so that the scale map gives the diagonal of the Cholesky factor and
    :math:`\log\det L = \sum_i \log \sigma_i` directly. A starts as the identity. Everything else is as in
    :class:`AmortizedNormal`.

    A single real latent of event shape (D,) is sampled from a
    :class:`~pyro_vae.guides.multivariate.LogScaleMultivariateNormal` directly, whose KL to independent
    Normals and to a MultivariateNormal is analytic. Several latents, which then correlate, are drawn together
    as one auxiliary site and their KL is sampled.

    Parameters
    ----------
    model, encoder, scale, init_scale
        As in :class:`AmortizedNormal`.

    Raises
    ------
    TypeError, ValueError
        As in :class:`AmortizedNormal`.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.sum(-1), 0.1), obs=x[:, 0])
    >>> guide = AmortizedMultivariateNormal(model, torch.nn.Linear(3, 16), init_scale=0.5)
    >>> guide.posterior(torch.randn(5, 3)).covariance_matrix[0]
    tensor([[0.2500, 0.0000],
            [0.0000, 0.2500]], grad_fn=<SelectBackward0>)
    """

    family = FULL

    def _make_heads(self, feature_size: int, latent_dim: int) -> None:
        super()._make_heads(feature_size, latent_dim)
        below = latent_dim * (latent_dim - 1) // 2
        if below:
            self.tril_head = nn.Linear(feature_size, below)
            nn.init.zeros_(self.tril_head.weight)
            nn.init.zeros_(self.tril_head.bias)

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        parameters = super()._heads(features)
        if parameters["loc"].shape[-1] > 1:
            parameters["tril"] = at_least_float32(self.tril_head(features))
        return parameters


class AmortizedFlow(EncoderGuide):
    r"""An inverse autoregressive flow for each observation, over all its latents together.

    .. math::
        z_0 \sim \mathcal{N}(\mu(x), \operatorname{diag} \sigma(x)^2), \qquad
        z_t = m_t(z_{t-1}, h(x)) + s_t(z_{t-1}, h(x)) \odot z_{t-1}, \qquad z = z_T

    The transforms are Pyro's ``ConditionalAffineAutoregressive``: each is autoregressive in z, so that its
    Jacobian is triangular, in alternating order; each reads the features h, so that the shape of the
    posterior and not only its location and scale may differ between observations; and each starts as the
    identity. They point in the direction of inverse autoregressive flow, because a guide draws and then asks
    for the density of its own draw: both take one pass, the second from the cache. The density of a value
    from elsewhere takes one pass per dimension and transform. (A coupling flow would have both for one pass,
    but changes half of the coordinates per transform and so needs about twice as many.)

    Everything else is as in :class:`AmortizedNormal`; the KL is sampled.

    Parameters
    ----------
    model, encoder, scale, init_scale
        As in :class:`AmortizedNormal`; scale and init_scale are of :math:`z_0`.
    transforms
        How many, at least 1. The first alone gives a flow that is already correlated, but Normal given its
        predecessors; from the second on, skewed and curved shapes.

    Raises
    ------
    TypeError, ValueError
        As in :class:`AmortizedNormal`; and if an observation has only one latent dimension, where the flow
        would be a Normal.

    References
    ----------
    Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improving Variational Inference with
    Inverse Autoregressive Flow. Germain, Gregor, Murray and Larochelle (2015), MADE: Masked Autoencoder for
    Distribution Estimation.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z.prod(-1), 0.1), obs=x[:, 0])
    >>> guide = AmortizedFlow(model, torch.nn.Linear(3, 16))
    >>> q = guide.posterior(torch.randn(5, 3))
    >>> q.log_prob(q.rsample()).shape
    torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: nn.Module,
        *,
        scale: str | scales.ScaleMap = "softplus",
        init_scale: float = 1.0,
        transforms: int = 2,
        globals: Globals | None = None,  # what they are called
    ) -> None:
        positive_integer("transforms", transforms)
        super().__init__(model, encoder, scale=scale, init_scale=init_scale, globals=globals)
        self.transforms = transforms

    def _make_heads(self, feature_size: int, latent_dim: int) -> None:
        if latent_dim == 1:
            raise ValueError(
                "AmortizedFlow needs at least 2 latent dimensions per observation, but the model has 1, "
                "where an affine autoregressive flow is a Normal: use AmortizedNormal"
            )
        super()._make_heads(feature_size, latent_dim)
        self.flow = nn.ModuleList(
            _affine_autoregressive(feature_size, latent_dim, reverse=bool(i % 2))
            for i in range(self.transforms)
        )

    def _heads(self, features: Tensor) -> dict[str, Tensor]:
        return {**super()._heads(features), "context": at_least_float32(features)}

    @property
    def _factorizes(self) -> bool:
        return False

    def _joint(self, parameters: dict[str, Tensor]) -> TorchDistribution:
        steps: Any = self.flow
        transforms = [step.condition(parameters["context"]) for step in steps]
        return _Flow(DIAGONAL.joint(parameters), transforms)

    def _marginals(self, parameters: dict[str, Tensor]) -> dict[str, TorchDistribution]:
        if len(self.sites) > 1:
            raise NotImplementedError(
                f"a flow over {len(self.sites)} latents has no closed form for each by itself: get_posterior "
                "has them jointly, and pyro.infer.Predictive draws each"
            )
        (site,) = self.sites
        return {site.name: site.transformed(self._joint(parameters))}

    def _marginal_scale(self, parameters: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError(
            "a flow has no closed form for medians and quantiles: draw from it with pyro.infer.Predictive"
        )


class _Flow(TransformedDistribution):  # type: ignore[misc]
    """A flow that broadcasts values against its batch, which Pyro's conditional networks do not."""

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        # Its own draw must stay the same tensor, or the transforms would not know it.
        value = value if value.shape == shape else value.expand(shape)
        return super().log_prob(value)  # type: ignore[no-any-return]


def _affine_autoregressive(
    feature_size: int, latent_dim: int, *, reverse: bool
) -> ConditionalAffineAutoregressive:
    order: Any = torch.arange(latent_dim)
    network = ConditionalAutoRegressiveNN(
        latent_dim,
        feature_size,
        [max(64, 4 * latent_dim)],
        permutation=order.flip(0) if reverse else order,
    )
    for parameter in network.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return ConditionalAffineAutoregressive(network)
