"""How far data spread around what the decoder says, where that is learned."""

from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_vae.arguments import brief

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
        raise ValueError(f"dispersion is {brief(dispersion)}; give 'shared', 'feature' or 'predicted'")
