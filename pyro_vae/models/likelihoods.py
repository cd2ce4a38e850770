"""Likelihoods p(x|z): how a decoder's output becomes a distribution of the data.

Each is a small frozen object. It says how many decoder outputs it needs per feature (`outputs`), turns them
into a Pyro distribution (`distribution`), and can look at a data set once, before any fitting (`check`).
"""

__all__ = [
    "Bernoulli",
    "Binomial",
    "Exponential",
    "Likelihood",
    "Normal",
    "ScaleMap",
    "get",
    "names",
]

import difflib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.models.densities import LocationScale

Dispersion = Literal["shared", "feature", "predicted"]


@runtime_checkable
class ScaleMap(Protocol):
    """What a likelihood needs of a scale map: every map of ``pyro_vae.guides.scales`` has it.

    Stated here as a protocol so that models need not import the guides.
    """

    def log_scale(self, raw: Tensor) -> Tensor:
        """Log σ for an unconstrained ``raw``."""
        ...

    def inv(self, scale: Tensor) -> Tensor:
        """The ``raw`` at which σ = ``scale``."""
        ...


@dataclass(frozen=True)
class Exponential:
    """The plainest scale map, σ = exp(raw): the default where a likelihood is given no other."""

    def log_scale(self, raw: Tensor) -> Tensor:
        """``raw`` itself."""
        return raw

    def inv(self, scale: Tensor) -> Tensor:
        """Log ``scale``."""
        return scale.log()


@dataclass(frozen=True)
class Likelihood(ABC):
    """What the likelihoods share."""

    @property
    def outputs(self) -> int:
        """How many numbers the decoder gives per feature."""
        return 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:  # noqa: ARG002
        """Start of the parameter that is learned beside the decoder, or None when there is none."""
        return None

    def split(self, output: Tensor, event_dim: int) -> tuple[Tensor, ...]:
        """The decoder's output as `outputs` tensors of the data's shape.

        They lie one after the other along the first event dimension: features of a row, channels of an image.
        """
        return output.chunk(self.outputs, dim=-event_dim) if self.outputs > 1 else (output,)

    @abstractmethod
    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        """The distribution of the data, its last ``event_dim`` dimensions being the event.

        Parameters
        ----------
        output
            What the decoder gave: (..., features × outputs), or (..., channels × outputs, height, width).
        dispersion
            The parameter that is learned beside the decoder (see `initial_dispersion`).
        event_dim
            How many trailing dimensions one observation has.
        """

    @abstractmethod
    def check(self, x: Tensor, name: str = "x") -> None:
        """Raise a ValueError that names row, column, value and remedy if ``x`` is not such data."""


def _refuse(x: Tensor, bad: Tensor, name: str, what: str, remedy: str) -> None:
    """Raise for the first True of ``bad``, which has the shape of ``x``."""
    if not bool(bad.any()):
        return
    index = tuple(int(i) for i in bad.nonzero()[0])
    place = f"row {index[0]}" + (f", column {index[1]}" if len(index) == 2 else "")
    if len(index) > 2:
        place += f", position {index[1:]}"
    raise ValueError(f"{name} is {x[index].item():g} in {place}, but {what}: {remedy}.")


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Binary data; the decoder gives logits.

    Examples
    --------
    >>> Bernoulli().distribution(torch.zeros(5, 3)).log_prob(torch.ones(5, 3))[0]
    tensor(-2.0794)
    """

    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        return dist.Bernoulli(logits=output).to_event(event_dim)

    def check(self, x: Tensor, name: str = "x") -> None:
        _refuse(x, (x != 0) & (x != 1), name, "a Bernoulli likelihood needs 0 or 1", "binarize the data")


@dataclass(frozen=True)
class Binomial(Likelihood):
    """Counts out of a known total; the decoder gives logits."""

    total_count: int

    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        return dist.Binomial(self.total_count, logits=output).to_event(event_dim)

    def check(self, x: Tensor, name: str = "x") -> None:
        bad = (x < 0) | (x > self.total_count) | (x != x.round())
        _refuse(
            x,
            bad,
            name,
            f"Binomial({self.total_count}) needs integers in 0…{self.total_count}",
            "rescale the data",
        )


@dataclass(frozen=True)
class Normal(Likelihood):
    """Real data; the decoder gives the location, and the scale if ``dispersion="predicted"``."""

    scale: float | ScaleMap = field(default_factory=Exponential)
    dispersion: Dispersion = "shared"
    init_scale: float = 1.0

    @property
    def outputs(self) -> int:
        return 2 if self._learned and self.dispersion == "predicted" else 1

    @property
    def _learned(self) -> bool:
        return not isinstance(self.scale, (int, float))

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:
        if isinstance(self.scale, (int, float)) or self.dispersion == "predicted":
            return None
        shape = event_shape if self.dispersion == "feature" else torch.Size()
        return self.scale.inv(torch.full(shape, self.init_scale))

    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        if isinstance(self.scale, (int, float)):
            loc, log_scale = output, torch.full_like(output, self.scale).log()
        elif self.dispersion == "predicted":
            loc, raw = self.split(output, event_dim)
            log_scale = self.scale.log_scale(raw)
        else:
            assert dispersion is not None
            loc, log_scale = output, self.scale.log_scale(dispersion)
        standard = dist.Normal(loc.new_zeros(()), loc.new_ones(()))
        return LocationScale(standard, loc, log_scale).to_event(event_dim)

    def check(self, x: Tensor, name: str = "x") -> None:
        _refuse(x, ~x.isfinite(), name, "a Normal likelihood needs finite values", "drop or impute them")


_BY_NAME: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli, "binomial": Binomial, "normal": Normal}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_BY_NAME)


def get(name: str, **kwargs: Any) -> Likelihood:
    """A likelihood by name: ``get("binomial", total_count=16)``."""
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"likelihood={name!r} is not known{hint} The names are {', '.join(names())}.")
    return _BY_NAME[name](**kwargs)
