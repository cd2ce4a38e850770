"""One latent of an observation: its support, shape and plates, and how free coordinates become values."""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import ExpTransform, ReshapeTransform

from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.guides.pushforward import PushforwardDelta, push_forward

POSITIVE = (type(constraints.positive), type(constraints.nonnegative))


class InnerPlate(NamedTuple):
    """A plate within an observation: over latent dimensions, words, repeated measurements."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class LocalSite:
    """One latent of an observation."""

    name: str
    """Of the sample site."""
    support: Constraint
    """Where its values lie, without the event dimensions that ``.to_event`` declared."""
    event_shape: torch.Size
    """Of one value."""
    unconstrained_shape: torch.Size
    """Of one value after ``biject_to(support).inv``: a simplex of 3 has 2 free coordinates."""
    plates: tuple[InnerPlate, ...] = ()
    """Within the observation, the outermost first: an observation has a value for each index."""
    observation_dim: int = -1
    """Where the plate of the observations lies."""
    masked: bool = False
    """Whether the model masks it."""

    @property
    def size(self) -> int:
        """Free coordinates of an observation."""
        return self._free_shape.numel()

    @property
    def numbers(self) -> int:
        """Numbers in the values of an observation."""
        return torch.Size([plate.size for plate in self.plates]).numel() * self.event_shape.numel()

    @property
    def is_plain(self) -> bool:
        """Whether it sits in one plate, that of the observations, at dim −1."""
        return not self.plates and self.observation_dim == -1

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
        """Values in their plates from free coordinates (…, size), which are drawn elsewhere, with the
        Jacobian."""
        return push_forward(self.transform, self.in_plates(free), len(self.event_shape))

    def in_plates(self, free: Tensor) -> Tensor:
        """Free coordinates (batch, size), the batch laid out as in the plate of the observations, as they lie
        in all plates: (batch, unconstrained)."""
        if self.is_plain:
            return free.reshape(*free.shape[:-1], *self.unconstrained_shape)
        depth = max(-dim for dim in (self.observation_dim, *[plate.dim for plate in self.plates]))
        batch = (1,) * (depth - free.dim() + 1) + tuple(free.shape[:-1])
        value, event = free.reshape(*batch, *self._free_shape), len(self.unconstrained_shape)
        for left in range(len(self.plates), 0, -1):  # from behind the batch, the first of those left
            plate = self.plates[len(self.plates) - left]
            value = value.transpose(-event - left, plate.dim - event - left).squeeze(-event - left)
        return value

    def normal(self, loc: Tensor, log_scale: Tensor, *, in_plates: bool = False) -> TorchDistribution:
        """A Normal with independent coordinates (…, size), pushed to the support.

        On a real site it is ``LogScaleNormal(...).to_event(...)`` itself, whose KL to a Normal is analytic.
        Plates within an observation are event dimensions, unless ``in_plates``.
        """
        shaped = self.in_plates if in_plates else self._shaped
        q: TorchDistribution = LogScaleNormal(shaped(loc), shaped(log_scale))
        event_dim = len(self.event_shape) + (0 if in_plates else len(self.plates))
        if not self.is_real:
            transform = self.transform
            q = TransformedDistribution(q.to_event(transform.domain.event_dim), [transform])
            event_dim -= transform.codomain.event_dim
        return q.to_event(event_dim)  # type: ignore[no-any-return]

    def transformed(self, joint: TorchDistribution) -> TorchDistribution:
        """A distribution over the free coordinates (…, size), pushed to the support; plates within an
        observation are event dimensions."""
        transforms: list[Transform] = []
        if len(self._free_shape) != 1:
            transforms.append(ReshapeTransform(torch.Size([self.size]), self._free_shape, cache_size=1))
        if not self.is_real:
            transforms.append(self.transform)
        return TransformedDistribution(joint, transforms) if transforms else joint

    @cached_property
    def _free_shape(self) -> torch.Size:
        return torch.Size([*[plate.size for plate in self.plates], *self.unconstrained_shape])

    def _shaped(self, free: Tensor) -> Tensor:
        return free.reshape(*free.shape[:-1], *self._free_shape)
