"""The latents that belong to one observation: found by running a model once."""

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import ignore_jit_warnings
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ExpTransform, ReshapeTransform

from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.guides.pushforward import PushforwardDelta, push_forward

OUTSIDE = (
    "An encoder guide covers latents of one observation only: give it poutine.block(model, expose=[...]) and "
    "the other latents an autoguide, both in a pyro.infer.autoguide.AutoGuideList."
)

DISCRETE = (
    "and an encoder guide draws continuous latents only: hide it with poutine.block(model, hide=['{name}']) and "
    "marginalize it with TraceEnum_ELBO"
)

POSITIVE = (type(constraints.positive), type(constraints.nonnegative))


class LatentError(ValueError):
    """The model's latents are none that a guide serves; the message says which, and what to do."""


@dataclass(frozen=True)
class LocalSite:
    """One latent of an observation.

    Attributes
    ----------
    name
        Of the sample site.
    support
        Where its values lie, without the event dimensions that ``.to_event`` declared.
    event_shape
        Of one value.
    unconstrained_shape
        Of one value after ``biject_to(support).inv``: a simplex of 3 has 2 free coordinates.
    """

    name: str
    support: Constraint
    event_shape: torch.Size
    unconstrained_shape: torch.Size

    @property
    def size(self) -> int:
        """Free coordinates of one value."""
        return self.unconstrained_shape.numel()

    @property
    def is_real(self) -> bool:
        """Whether the value is its own unconstrained value."""
        return isinstance(self.support, type(constraints.real))

    @property
    def transform(self) -> Transform:
        """From unconstrained to constrained values; remembers its last pair, so that the density of an own
        draw is that of the very noise that made it."""
        low = getattr(self.support, "lower_bound", None)
        if type(self.support) in POSITIVE and isinstance(low, int | float) and low == 0:
            # torch's own adds 0, which hides from kl_divergence that a LogNormal has the same transform.
            return ExpTransform(cache_size=1)
        transform: Transform = biject_to(self.support)
        with contextlib.suppress(NotImplementedError):
            transform = transform.with_cache(1)
        return transform

    def constrain(self, free: Tensor) -> Tensor:
        """Values from their free coordinates (…, size)."""
        value: Tensor = self.transform(self._shaped(free))
        return value

    def point(self, free: Tensor) -> PushforwardDelta:
        """Values from their free coordinates (…, size), which are drawn elsewhere, with the Jacobian."""
        return push_forward(self.transform, self._shaped(free), len(self.event_shape))

    def _shaped(self, free: Tensor) -> Tensor:
        return free.reshape(*free.shape[:-1], *self.unconstrained_shape)

    def normal(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """A Normal with independent coordinates (…, size), pushed to the support.

        On a real site it is ``LogScaleNormal(...).to_event(...)`` itself, whose KL to a Normal is analytic.
        """
        q: TorchDistribution = LogScaleNormal(self._shaped(loc), self._shaped(log_scale))
        event_dim = len(self.event_shape)
        if not self.is_real:
            transform = self.transform
            q = TransformedDistribution(q.to_event(transform.domain.event_dim), [transform])
            event_dim -= transform.codomain.event_dim
        return q.to_event(event_dim)  # type: ignore[no-any-return]

    def transformed(self, joint: TorchDistribution) -> TorchDistribution:
        """A distribution over the free coordinates (…, size), pushed to the support."""
        transforms: list[Transform] = []
        if len(self.unconstrained_shape) != 1:
            transforms.append(
                ReshapeTransform(torch.Size([self.size]), self.unconstrained_shape, cache_size=1)
            )
        if not self.is_real:
            transforms.append(self.transform)
        return TransformedDistribution(joint, transforms) if transforms else joint


@dataclass(frozen=True)
class ObservationPlate:
    """The plate of the observations as the model opened it in one kind of call.

    Attributes
    ----------
    name
        Of the plate.
    size
        Observations in the whole data.
    batch_size
        Observations in this call.
    given
        Whether the caller chose which (``subsample=``); otherwise the plate itself draws them.
    """

    name: str
    size: int
    batch_size: int
    given: bool

    def check(self, rows: int) -> None:
        """Raise ValueError unless the encoder's ``rows`` are the batch or, where the plate itself draws the
        batch, the whole data."""
        if rows == self.batch_size or (rows == self.size and not self.given):
            return
        whole = f" (or {self.size}, for the plate to draw from)" if self.batch_size < self.size else ""
        raise ValueError(
            f"the encoder returned {rows} rows of features, but plate '{self.name}' of the model has "
            f"{self.batch_size} observations in this call: return one row per observation, "
            f"{self.batch_size}{'' if self.given else whole}"
        )

    def open(self, rows: int) -> pyro.plate:
        """The same plate for a guide whose encoder returned ``rows`` rows of features (:meth:`check`)."""
        self.check(rows)
        if rows == self.batch_size:
            # The batch is chosen already, so the plate's indices mean nothing here; recorded, they would
            # replace the model's own.
            with poutine.block():
                return pyro.plate(self.name, self.size, subsample=torch.arange(rows), dim=-1)
        return pyro.plate(self.name, self.size, subsample_size=self.batch_size, dim=-1)


class _GivenSubsamples(Messenger):
    """Notes the plates whose indices the model passes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and msg["value"] is not None:
            self.names.add(msg["name"])


def _init(site: Mapping[str, Any]) -> Tensor:
    # Discrete latents are refused below with a sentence of our own; until then any value does.
    value: Tensor = site["fn"].sample() if site["fn"].support.is_discrete else init_to_feasible(site)
    return value


def find_local_sites(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    outside: str = OUTSIDE,
    discrete: str = DISCRETE,
) -> tuple[tuple[LocalSite, ...], ObservationPlate]:
    """Run the model once and return its latents, in order, and the plate that they sit in.

    The run is invisible to the surrounding program and leaves torch's random streams as they were.

    Raises
    ------
    ValueError
        If there is no latent, or one that is discrete, sits outside the plate of the observations, in
        further plates, or in a sequential plate, or whose support depends on the observation or on a
        parameter.
    """
    given = _GivenSubsamples()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda), poutine.block(), given:
        trace = poutine.trace(InitMessenger(_init)(model)).get_trace(*args, **kwargs)
    latents = [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    ]
    if not latents:
        raise LatentError(
            "the model has no latent variable for this guide: every sample site is observed or hidden by "
            "poutine.block. An encoder guide needs at least one latent in the plate of the observations."
        )
    rows = next((len(arg) for arg in args if isinstance(arg, Tensor) and arg.dim()), 0)
    frames = {_observation_frame(site, outside, rows) for site in latents}
    if len(frames) > 1:
        names = sorted(frame.name for frame in frames)
        raise LatentError(
            f"the latents sit in {len(frames)} plates ({', '.join(names)}), but the encoder has features for "
            f"one plate only. {outside}"
        )
    (frame,) = frames
    plate = ObservationPlate(
        name=frame.name,
        size=frame.full_size or frame.size,
        batch_size=frame.size,
        given=frame.name in given.names,
    )
    return tuple(_local_site(site, discrete) for site in latents), plate


def _observation_frame(site: Mapping[str, Any], outside: str, rows: int) -> Any:
    """The one plate of a latent."""
    name, stack = site["name"], site["cond_indep_stack"]
    if any(not frame.vectorized for frame in stack):
        raise LatentError(
            f"latent '{name}' sits in a sequential plate (for i in pyro.plate(...)); write it with "
            "`with pyro.plate(...):`"
        )
    shape = tuple(site["fn"].batch_shape) + tuple(site["fn"].event_shape)
    if not stack and shape[:1] == (rows,):
        raise LatentError(
            f"latent '{name}' has a value for each of the {rows} observations, and is in no plate; write it in "
            "`with pyro.plate('data', len(x)):`, and declare by .to_event() the dimensions within an "
            "observation alone"
        )
    if not stack:
        raise LatentError(f"latent '{name}' sits outside the plate of the observations. {outside}")
    if len(stack) > 1 or stack[0].dim != -1:
        where = ", ".join(f"'{frame.name}' (dim {frame.dim})" for frame in stack)
        raise LatentError(
            f"latent '{name}' sits in plate {where}, but an encoder guide needs exactly one plate, that of "
            "the observations, at dim -1; declare the dimensions within an observation with .to_event()"
        )
    return stack[0]


def _local_site(site: Mapping[str, Any], discrete: str) -> LocalSite:
    name, fn, value = site["name"], site["fn"], site["value"]
    if fn.support.is_discrete:
        raise LatentError(
            f"latent '{name}' is discrete ({type(fn).__name__}), {discrete.format(name=name)}"
        )
    if len(fn.batch_shape) != 1:
        raise LatentError(
            f"latent '{name}' has batch shape {tuple(fn.batch_shape)} in plate at dim -1; declare the "
            "dimensions within an observation with .to_event()"
        )
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = _shared_support(support, name, len(fn.event_shape))
    with helpful_support_errors(site):
        unconstrained = biject_to(support).inv(value.detach())
    return LocalSite(name, support, plain_shape(fn.event_shape), plain_shape(unconstrained.shape[1:]))


def _shared_support(support: Constraint, name: str, event_dim: int) -> Constraint:
    """The support without the batch dimension of its bounds, which must be the same for all observations."""
    shared = copy.copy(support)
    for key in ("lower_bound", "upper_bound"):
        bound = getattr(support, key, None)
        if not isinstance(bound, Tensor):
            continue
        if bound.requires_grad:
            raise LatentError(
                f"the {key} of latent '{name}' is a learned parameter, but the guide keeps the support of "
                "its first call: draw the latent on a fixed support and scale it inside the model"
            )
        if bound.dim() > event_dim:
            if bool((bound != bound[:1]).any()):
                raise LatentError(
                    f"the {key} of latent '{name}' differs between observations, but the guide has one "
                    "support for all: draw the latent on a fixed support and scale it inside the model"
                )
            bound = bound[0]
        # A number follows the guide to any device.
        same = bool((bound == bound.flatten()[0]).all())
        setattr(shared, key, float(bound.flatten()[0]) if same else bound)
    return shared


def call_signature(value: Any) -> Hashable:
    """What of a call's arguments can change its plates: shapes of tensors, integers, flags, strings.

    Floats are left out: an annealing weight may change in every step.
    """
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, Mapping):
        return tuple((key, call_signature(value[key])) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(call_signature(item) for item in value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else (type(value).__name__, tuple(plain_shape(shape)))


def plain_shape(shape: Iterable[Any]) -> torch.Size:
    """A shape in plain integers: inside ``torch.jit.trace``, and so under Pyro's Jit ELBOs, sizes are
    tensors, which are equal to no size that was seen before."""
    with ignore_jit_warnings():
        return torch.Size(int(size) for size in shape)
