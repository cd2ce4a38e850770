"""Pyro's Normal autoguides with the scale map as a constructor argument, right under every ELBO."""

from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_median
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_vae.arguments import check_programs, positive_integer
from pyro_vae.guides import scales
from pyro_vae.guides.heads import initial_slope, raw_value
from pyro_vae.guides.multivariate import LogScaleMultivariateNormal
from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.guides.pushforward import PushforwardMessenger, push_forward

Init = Callable[..., Any]
Plates = Callable[..., Any]


class _Scaled:
    """What the guides below add to Pyro's: σ by a scale map."""

    scale_constraint: Any
    prototype_trace: Any
    _init_scale: float

    def _use_map(self, scale: str | scales.ScaleMap, init_scale: float) -> None:
        """Read σ by this map; it starts at ``init_scale``."""
        self.scale_map = scales.get(scale)
        self._slope = initial_slope(self.scale_map, init_scale)
        self.scale_constraint = self.scale_map.constraint

    def extra_repr(self) -> str:
        return f"scale={self.scale_map!r}, init_scale={self._init_scale:g}"

    def own_raw_parameters(self) -> dict[str, tuple[nn.Parameter, float]]:
        """See :func:`pyro_vae.guides.heads.raw_parameters`; empty before the first call."""
        raw = {} if self.prototype_trace is None else self._raw()
        return {name: (parameter, self._slope) for name, parameter in raw.items()}

    def _raw(self) -> dict[str, nn.Parameter]:
        """The parameters that the map reads, by name."""
        raise NotImplementedError


class AutoNormal(_Scaled, autoguide.AutoNormal):
    r"""Pyro's ``AutoNormal``, an independent Normal for every latent, with ``scale=``.

    Each latent is :math:`T(u)`, :math:`u \sim \mathcal{N}(\mu, \sigma^2)`, :math:`\sigma = g(\text{raw})`
    with a scale map g and ``T = biject_to(support)``. Parameters (``locs.*``, ``scales.*``), trace sites and
    methods are Pyro's. Two things differ: the density takes log σ from the map; and the Jacobian of T is kept
    by ``TraceMeanField_ELBO``, under which Pyro's own optimizes a wrong objective on a constrained latent.

    Parameters
    ----------
    model
        A Pyro model.
    init_loc_fn
        Per-site initialization of μ, as in Pyro.
    scale
        A name of :func:`pyro_vae.guides.scales.names` or a map; ``"softplus"`` is Pyro's.
    init_scale
        σ before training, in unconstrained space.
    create_plates
        As in Pyro: a function of the model's arguments that returns its subsampled plates.

    Raises
    ------
    TypeError
        If ``model`` is no program or ``scale`` neither a name nor a map.
    ValueError
        If ``scale`` is unknown or does not reach ``init_scale``.

    References
    ----------
    Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), Automatic Differentiation Variational Inference.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> def model():
    ...     return pyro.sample("rate", dist.LogNormal(1.0, 1.0))
    >>> guide = AutoNormal(model, scale="logvar", init_scale=0.5)
    >>> _ = guide()
    >>> guide.scales.rate
    tensor(0.5000, grad_fn=<ExpBackward0>)
    >>> elbo = pyro.infer.TraceMeanField_ELBO()
    >>> svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), elbo)
    >>> for _ in range(500):
    ...     _ = svi.step()
    >>> abs(guide.locs.rate.item() - 1.0) < 0.2
    True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Init = init_to_feasible,
        scale: str | scales.ScaleMap = "softplus",
        init_scale: float = 0.1,
        create_plates: Plates | None = None,
    ) -> None:
        check_programs(model=model)
        self._use_map(scale, init_scale)
        super().__init__(  # type: ignore[no-untyped-call]
            model, init_loc_fn=init_loc_fn, init_scale=float(init_scale), create_plates=create_plates
        )

    def _log_scale(self, name: str) -> Tensor:
        """log σ of a latent, of the rows that the enclosing plates chose."""
        attrgetter(name)(self.scales)  # the pyro.param statement, which also fetches from the param store
        raw = attrgetter(name + "_unconstrained")(self.scales)
        return self.scale_map.log_scale(pyro.subsample(raw, event_dim=self._event_dims[name]))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)  # type: ignore[no-untyped-call]
        plates = self._create_plates(*args, **kwargs)  # type: ignore[no-untyped-call]
        trace: Any = self.prototype_trace
        result = {}
        for name, site in trace.iter_stochastic_nodes():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        stack.enter_context(plates[frame.name])
                base: TorchDistribution = LogScaleNormal(attrgetter(name)(self.locs), self._log_scale(name))
                unconstrained = pyro.sample(
                    f"{name}_unconstrained",
                    base.to_event(self._event_dims[name]),
                    infer={"is_auxiliary": True},
                )
                point = push_forward(biject_to(site["fn"].support), unconstrained, site["fn"].event_dim)
                result[name] = pyro.sample(name, point)
        return result

    def _raw(self) -> dict[str, nn.Parameter]:
        return {f"scales.{name}": raw for name, raw in self.scales.named_parameters()}


class _ScaledContinuous(_Scaled, autoguide.AutoContinuous):
    """The same for guides over all latents together, with a Jacobian that survives ``kl_divergence``."""

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Init = init_to_median,
        init_scale: float = 0.1,
        *,
        scale: str | scales.ScaleMap = "softplus",
    ) -> None:
        check_programs(model=model)
        self._use_map(scale, init_scale)
        super().__init__(model, init_loc_fn, float(init_scale))  # type: ignore[call-arg,no-untyped-call]

    def _log_scale(self) -> Tensor:
        self.scale  # noqa: B018  # the pyro.param statement, which also fetches from the param store
        return self.scale_map.log_scale(self.scale_unconstrained)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with PushforwardMessenger():
            result: dict[str, Tensor] = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        return result

    def _raw(self) -> dict[str, nn.Parameter]:
        return {"scale_unconstrained": self.scale_unconstrained}


class AutoDiagonalNormal(_ScaledContinuous, autoguide.AutoDiagonalNormal):
    """Pyro's ``AutoDiagonalNormal``, one diagonal Normal over all latents together, with ``scale=``.

    Parameters and methods are Pyro's. The density takes log σ from the map, and ``TraceMeanField_ELBO`` is
    right on constrained latents (see :class:`AutoNormal`).

    Parameters
    ----------
    model, init_loc_fn, scale, init_scale
        As in :class:`AutoNormal`, which refuses what this one does.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("rate", dist.LogNormal(1.0, 1.0))
    ...     pyro.sample("shift", dist.Normal(0.0, 1.0))
    >>> guide = AutoDiagonalNormal(model, scale="explinear", init_scale=0.5)
    >>> _ = guide()
    >>> guide.get_posterior().stddev
    tensor([0.5000, 0.5000], grad_fn=<SqrtBackward0>)
    """

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:  # noqa: ARG002
        base: TorchDistribution = LogScaleNormal(self.loc, self._log_scale())
        posterior: TorchDistribution = base.to_event(1)
        return posterior


class AutoMultivariateNormal(_ScaledContinuous, autoguide.AutoMultivariateNormal):
    """Pyro's ``AutoMultivariateNormal``, one Normal with full covariance over all latents, with ``scale=``.

    Parameters and methods are Pyro's; the map gives the diagonal of the Cholesky factor. The log determinant
    is the sum of the map's log σ, and ``TraceMeanField_ELBO`` is right on constrained latents (see
    :class:`AutoNormal`).

    Parameters
    ----------
    model, init_loc_fn, scale, init_scale
        As in :class:`AutoNormal`, which refuses what this one does.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("rate", dist.LogNormal(1.0, 1.0))
    ...     pyro.sample("shift", dist.Normal(0.0, 1.0))
    >>> guide = AutoMultivariateNormal(model, scale="logstd", init_scale=0.5)
    >>> _ = guide()
    >>> guide.get_posterior().covariance_matrix
    tensor([[0.2500, 0.0000],
            [0.0000, 0.2500]], grad_fn=<ExpandBackward0>)
    """

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:  # noqa: ARG002
        unit_tril: Any = self.scale_tril
        return LogScaleMultivariateNormal(self.loc, self._log_scale(), unit_tril)


class AutoLowRankMultivariateNormal(_ScaledContinuous, autoguide.AutoLowRankMultivariateNormal):
    """Pyro's ``AutoLowRankMultivariateNormal``, diagonal plus low rank over all latents, with ``scale=``.

    Parameters and methods are Pyro's. ``TraceMeanField_ELBO`` is right on constrained latents (see
    :class:`AutoNormal`).

    Parameters
    ----------
    model, init_loc_fn, scale
        As in :class:`AutoNormal`.
    init_scale
        Approximate standard deviation before training; the map's σ starts at ``init_scale / sqrt(2)``.
    rank
        Of the low-rank part, by default about the square root of the number of latent dimensions.

    Raises
    ------
    TypeError, ValueError
        As in :class:`AutoNormal`, and if ``rank`` is not positive.

    Examples
    --------
    >>> import torch, pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.zeros(9), 1.0).to_event(1))
    >>> guide = AutoLowRankMultivariateNormal(model, scale="logvar")
    >>> _ = guide()
    >>> guide.cov_factor.shape, guide.median()["z"].shape
    (torch.Size([9, 3]), torch.Size([9]))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Init = init_to_median,
        init_scale: float = 0.1,
        rank: int | None = None,
        *,
        scale: str | scales.ScaleMap = "softplus",
    ) -> None:
        check_programs(model=model)
        if rank is not None:
            positive_integer("rank", rank)
        raw_value(scales.get(scale), init_scale)  # a refusal names the argument
        self._use_map(scale, 0.5**0.5 * init_scale)  # as Pyro splits it between diagonal and factor
        autoguide.AutoLowRankMultivariateNormal.__init__(self, model, init_loc_fn, float(init_scale), rank)
