"""An autoguide beside an encoder guide, for the latents that all observations share."""

from collections.abc import Callable, Sequence
from typing import Any

from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.arguments import brief, kind
from pyro_vae.guides import auto

AUTOGUIDES: dict[str, Callable[[Callable[..., Any]], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        auto.AutoDiagonalNormal,
        auto.AutoLowRankMultivariateNormal,
        auto.AutoMultivariateNormal,
        auto.AutoNormal,
    )
}

Globals = str | Callable[[Callable[..., Any]], nn.Module]


def as_globals(given: Any) -> Callable[[Callable[..., Any]], nn.Module]:
    """What makes the autoguide of a model: a name of ours, or a callable. Raises ValueError or TypeError for
    another name, or no callable."""
    if isinstance(given, str):
        if given not in AUTOGUIDES:
            raise ValueError(f"globals is {brief(given)}; give one of {', '.join(AUTOGUIDES)}, or a callable")
        return AUTOGUIDES[given]
    if not callable(given):
        raise TypeError(
            f"globals is {kind(given)}; give the name of an autoguide, such as 'AutoNormal', or "
            "what makes one of a model"
        )
    return given  # type: ignore[no-any-return]


class SharedLatents(PyroModule):
    """The guide of the latents outside of the plate of the observations, made when they are known.

    A state may be loaded before: it waits for the guide.
    """

    guide: Any

    def __init__(self, make: Callable[[Callable[..., Any]], nn.Module]) -> None:
        super().__init__()
        self._make = make
        self._waiting: dict[str, Tensor] = {}

    @property
    def is_set_up(self) -> bool:
        """Whether the guide is made."""
        return "guide" in self._modules

    def set_up(
        self, model: Callable[..., Any], names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Make the guide for these latents of the model."""
        if self.is_set_up:
            return
        self.guide = self._make(poutine.block(model, expose=list(names)))
        with poutine.block():
            self.guide(*args, **kwargs)
        if self._waiting:
            self.guide.load_state_dict(self._waiting)
            self._waiting = {}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the shared latents; nothing where there are none."""
        if not self.is_set_up:
            return {}
        self.guide.master = None  # copying makes the guide around it its master, which has no plates for it
        draws: dict[str, Tensor] = self.guide(*args, **kwargs)
        return draws

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if not self.is_set_up:
            below = prefix + "guide."
            self._waiting = {
                key.removeprefix(below): value for key, value in state_dict.items() if key.startswith(below)
            }
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
