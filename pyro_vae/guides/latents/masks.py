"""Latents that a model masks: their density does not count there, and so the guide's must not.

Under ``.mask(m)`` or ``poutine.mask`` the prior of a hidden latent adds nothing to the ELBO. A guide that
counted its own density there would gain by every widening, without bound. Which are hidden is the model's to
say, in every call: it is run up to the last latent that it masks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, biject_to

from pyro_vae.guides.latents import LatentError

Mask = Tensor | bool


class Masks(NamedTuple):
    """What hides parts of a latent."""

    of_values: Mask | None
    """By batch and plates."""
    of_events: Mask | None
    """By batch, plates and the last ``event_dim`` dimensions of a value."""
    event_dim: int

    def apply(self, q: TorchDistribution) -> TorchDistribution:
        """The distribution with what is hidden left out of its density."""
        if self.of_events is not None:
            depth = q.reinterpreted_batch_ndims if isinstance(q, Independent) else 0
            if depth < self.event_dim:
                raise LatentError(
                    "the model masks parts of a latent's value whose coordinates the guide draws together; "
                    "mask whole values, or take AmortizedNormal"
                )
            base = q if not depth else q.base_dist.to_event(depth - self.event_dim)
            q = base.mask(self.of_events).to_event(self.event_dim)
        return q if self.of_values is None else q.mask(self.of_values)


def hidden_alike(joint: TorchDistribution, masks: Sequence[Masks | None]) -> TorchDistribution:
    """A distribution of several latents together, with what hides all of them left out of its density. Raises
    ValueError if they are not all hidden by one mask."""
    first, *others = masks
    alike = all(
        other is first or (first and other and other.of_values is first.of_values) for other in others
    )
    if not alike or (first is not None and first.of_events is not None):
        raise LatentError(
            "the model masks some of the latents that the guide draws together; mask all by one "
            "poutine.mask, or take AmortizedNormal"
        )
    return joint if first is None else first.apply(joint)


def is_masked(site: Mapping[str, Any]) -> bool:
    """Whether a model masks a site."""
    found = _masks(site)
    return found.of_values is not None or found.of_events is not None


def hides(site: Mapping[str, Any]) -> bool:
    """Whether a mask of a site hides some of it."""
    found = _masks(site)
    given = [mask for mask in (found.of_values, found.of_events) if mask is not None]
    return not all(bool(torch.as_tensor(mask).all()) for mask in given)


def masks_of(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Masks]:
    """What hides these latents in this call, by name. Nothing is drawn, and nobody sees the run."""
    reader = _Reader(names)
    with poutine.block():
        try:
            with reader:
                model(*args, **kwargs)
        except _EnoughError:
            pass
    return reader.found


class _EnoughError(Exception):
    """All masks are known."""


class _Reader(Messenger):
    """Gives latents some value of their support, and stops the program when all masks are known."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.found = set(names), dict[str, Masks]()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        fn = msg["fn"]
        if fn.support.is_discrete:
            msg["value"] = fn.enumerate_support(expand=True)[0] if fn.has_enumerate_support else fn.sample()
            return
        transform = biject_to(fn.support)
        shape = transform.inverse_shape(fn.shape())
        with torch.no_grad():
            msg["value"] = transform(torch.zeros(shape, dtype=_dtype(fn), device=_device(fn)))

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names:
            return
        self.found[msg["name"]] = _masks(msg)
        if self.found.keys() == self.names:
            raise _EnoughError


def _masks(site: Mapping[str, Any]) -> Masks:
    fn, event_dim = site["fn"], 0
    while isinstance(fn, Independent):
        event_dim += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    of_values, of_events = site["mask"], None
    if isinstance(fn, MaskedDistribution):
        if event_dim:
            of_events = fn._mask
        else:
            of_values = fn._mask if of_values is None else of_values & fn._mask
    return Masks(of_values, of_events, event_dim)


def _dtype(fn: Any) -> torch.dtype | None:
    return next((p.dtype for p in _parameters(fn) if p.is_floating_point()), None)


def _device(fn: Any) -> torch.device | None:
    return next((p.device for p in _parameters(fn)), None)


def _parameters(fn: Any) -> list[Tensor]:
    """The tensors that a distribution holds, of those beneath it too."""
    found: list[Tensor] = []
    while fn is not None:
        found += [value for value in vars(fn).values() if isinstance(value, Tensor)]
        fn = getattr(fn, "base_dist", None)
    return found
