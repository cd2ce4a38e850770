"""How far data spread around what the decoder says, where that is learned."""

__all__ = [
    "Dispersion",
    "dispersion_parameter",
    "require_dispersion",
    "require_positive",
    "with_zero_dispersion",
]

import math
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

Dispersion = Literal["shared", "feature", "predicted"]


def dispersion_parameter(dispersion: Dispersion, event_shape: torch.Size) -> Tensor | None:
    """A parameter of zeros, one for all features or one per feature; None if the decoder predicts it."""
    shapes = {"shared": torch.Size(), "feature": event_shape}
    return torch.zeros(shapes[dispersion]) if dispersion in shapes else None


def with_zero_dispersion(location: Tensor, outputs: int) -> Tensor:
    """``location``, followed by zeros for a dispersion that the decoder predicts."""
    return location if outputs == 1 else torch.cat([location, torch.zeros_like(location)])


def require_dispersion(dispersion: str) -> None:
    """Raise a ValueError unless ``dispersion`` is one of the three words."""
    if dispersion not in get_args(Dispersion):
        raise ValueError(f'dispersion={dispersion!r}: it is "shared", "feature" or "predicted".')


def require_positive(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is positive and finite."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: it must be a positive number.")
