"""What a model asks of a scale map."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ScaleMap(Protocol):
    """A map from an unconstrained ``raw`` to a scale σ > 0 that knows log σ itself.

    Every map of ``pyro_vae.guides.scales`` is one. The protocol is stated here so that models use the same
    maps as guides and yet import nothing of them; a density that is told ``log_scale(raw)`` never takes the
    log of a σ that has underflowed.
    """

    def log_scale(self, raw: Tensor) -> Tensor:
        """Log σ, elementwise."""
        ...

    @property
    def inv(self) -> Callable[[Tensor], Tensor]:
        """The function from σ back to ``raw``."""
        ...


@dataclass(frozen=True)
class LogScale:
    """The plainest scale map, σ = exp(raw): the default where a model is given no other."""

    def log_scale(self, raw: Tensor) -> Tensor:
        """``raw`` itself."""
        return raw

    def inv(self, scale: Tensor) -> Tensor:
        """Log ``scale``."""
        return scale.log()
