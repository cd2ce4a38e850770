"""Likelihoods p(x|z): how a decoder's output becomes a distribution of the data.

A likelihood is a small frozen object. It says how many numbers per feature the decoder gives (`outputs`),
turns them into a Pyro distribution (`distribution`), and looks at a data set once, before any fitting
(`check`). Where a decoder gives several numbers per feature, they lie one after the other along the first
event dimension: first all locations, then all scales; for images, along the channels.
"""

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "Dispersion",
    "Likelihood",
    "LogScale",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ScaleMap",
    "StudentT",
    "get",
    "names",
]

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional

from pyro_vae.models.densities import LocationScale, LogitBinomial, LogRatePoisson
from pyro_vae.models.scale_map import LogScale, ScaleMap

Dispersion = Literal["shared", "feature", "predicted"]
_VALUES_AT_ONCE = 4_194_304


class Likelihood(ABC):
    """What all likelihoods have.

    A new one defines `family`, `requirement`, `invalid` and `marginal_output`.
    """

    @property
    def outputs(self) -> int:
        """How many numbers per feature the decoder gives."""
        return 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:  # noqa: ARG002
        """Where the parameter that is learned beside the decoder starts; None if there is none."""
        return None

    def distribution(
        self, output: Tensor, dispersion: Tensor | None = None, *, event_dim: int = 1
    ) -> TorchDistribution:
        """The distribution of the data at a decoder's output.

        Parameters
        ----------
        output
            (..., features × outputs), or (..., channels × outputs, height, width).
        dispersion
            The parameter that is learned beside the decoder, if `initial_dispersion` gave one.
        event_dim
            How many trailing dimensions of ``output`` are one observation.
        """
        parameters: tuple[Tensor, ...] = (output,)
        if self.outputs > 1:
            stacked = output.unflatten(-event_dim, (self.outputs, -1))
            parameters = stacked.unbind(-event_dim - 1)
        if dispersion is not None:
            parameters = (*parameters, dispersion)
        observed: TorchDistribution = self.family(*parameters).to_event(event_dim)
        return observed

    @abstractmethod
    def family(self, *parameters: Tensor) -> TorchDistribution:
        """The distribution of single features, from `outputs` tensors of their shape and the dispersion."""

    @property
    @abstractmethod
    def requirement(self) -> str:
        """What the data must be, and what to do if they are not."""

    @abstractmethod
    def invalid(self, x: Tensor) -> Tensor:
        """Where ``x`` cannot come from this likelihood: a tensor of bools."""

    def check(self, x: Tensor, name: str = "x", columns: Sequence[str] | None = None) -> None:
        """Look at the data once, before a fit.

        Parameters
        ----------
        x
            Data, (n, ...).
        name, columns
            What a sentence calls the data and its columns.

        Raises
        ------
        ValueError
            If ``x`` cannot come from this likelihood. The sentence names row, column, value and remedy.

        Examples
        --------
        >>> Bernoulli().check(torch.tensor([[0.0, 1.0], [1.0, 0.5]]))
        Traceback (most recent call last):
        ValueError: x holds 0.5 in row 1, column 1. A Bernoulli likelihood needs 0 or 1: binarize the data...
        """
        size = max(1, _VALUES_AT_ONCE // max(1, x[:1].numel()))
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            rows = rows if rows.is_floating_point() else rows.double()
            invalid = self.invalid(rows)
            if not bool(invalid.any()):
                continue
            row, *rest = (int(i) for i in invalid.nonzero()[0])
            place = f"row {start + row}"
            if len(rest) == 1:
                place += f", column {rest[0] if columns is None else repr(columns[rest[0]])}"
            elif rest:
                place += f", position {tuple(rest)}"
            raise ValueError(f"{name} holds {rows[(row, *rest)].item():g} in {place}. {self.requirement}")

    @abstractmethod
    def marginal_output(self, x: Tensor) -> Tensor:
        """The constant decoder output that centres each feature where ``x`` (n, ...) has its mean."""


def _not_counts(x: Tensor) -> Tensor:
    """Where ``x`` is not a finite non-negative integer."""
    return ~x.isfinite() | (x < 0) | (x != x.round())


def _smoothed_mean(x: Tensor, total: int = 1) -> Tensor:
    """The mean over rows as a share of ``total``, kept off 0 and 1 by half a count on either side."""
    return (x.sum(0) + 0.5) / (len(x) * total + 1)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Binary data; the decoder gives log odds.

    Examples
    --------
    >>> Bernoulli().distribution(torch.zeros(3)).log_prob(torch.tensor([0.0, 1.0, 1.0]))
    tensor(-2.0794)
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        binary: TorchDistribution = dist.Bernoulli(logits=logits)
        return binary

    @property
    def requirement(self) -> str:
        return (
            "A Bernoulli likelihood needs 0 or 1: binarize the data (pyro_vae.data.binarize, or "
            "DynamicBinarization for a new draw every epoch), or use ContinuousBernoulli for intensities and "
            "Binomial for counts."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return (x != 0) & (x != 1)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x).logit()


@dataclass(frozen=True)
class Binomial(Likelihood):
    """Counts out of a known total; the decoder gives log odds.

    Parameters
    ----------
    total_count
        The largest possible count, for example 16 for scikit-learn's digits or 255 for bytes.

    Examples
    --------
    >>> Binomial(16).distribution(torch.zeros(3)).mean
    tensor([8., 8., 8.])
    """

    total_count: int

    def __post_init__(self) -> None:
        if (
            isinstance(self.total_count, bool)
            or not isinstance(self.total_count, int)
            or self.total_count < 1
        ):
            raise ValueError(f"total_count={self.total_count!r}: Binomial needs an integer of 1 or more.")

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        return LogitBinomial(self.total_count, logits)

    @property
    def requirement(self) -> str:
        return (
            f"A Binomial({self.total_count}) likelihood needs integers in 0…{self.total_count}: give the "
            "right total_count, or use Poisson for counts without a bound and Normal for reals."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x) | (x > self.total_count)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x, self.total_count).logit()


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Intensities in [0, 1]; the decoder gives logits.

    Unlike a Bernoulli evaluated at grey values, this is a normalized density.
    G. Loaiza-Ganem and J. P. Cunningham, 2019, The continuous Bernoulli.

    Examples
    --------
    >>> ContinuousBernoulli().distribution(torch.zeros(2)).log_prob(torch.tensor([0.2, 0.9]))
    tensor(0.)
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (logits,) = parameters
        intensities: TorchDistribution = dist.ContinuousBernoulli(logits=logits)
        return intensities

    @property
    def requirement(self) -> str:
        return (
            "A ContinuousBernoulli likelihood needs values in [0, 1]: divide by the largest possible value."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return ~((x >= 0) & (x <= 1))

    def marginal_output(self, x: Tensor) -> Tensor:
        # the mean is not the sigmoid of the logit here, but lies on the same side of ½
        return _smoothed_mean(x).logit()


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts without a bound; the decoder gives log rates.

    Examples
    --------
    >>> Poisson().distribution(torch.zeros(2)).mean
    tensor([1., 1.])
    """

    def family(self, *parameters: Tensor) -> TorchDistribution:
        (log_rate,) = parameters
        return LogRatePoisson(log_rate)

    @property
    def requirement(self) -> str:
        return "A Poisson likelihood needs non-negative integers: use Normal or StudentT for reals."

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _smoothed_mean(x).log()


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One of k categories per feature, coded 0…k−1; the decoder gives k logits per feature.

    Examples
    --------
    >>> Categorical(4).distribution(torch.zeros(2 * 4)).log_prob(torch.tensor([0, 3])).exp()
    tensor(0.0625)
    """

    categories: int

    def __post_init__(self) -> None:
        if isinstance(self.categories, bool) or not isinstance(self.categories, int) or self.categories < 2:
            raise ValueError(f"categories={self.categories!r}: Categorical needs an integer of 2 or more.")

    @property
    def outputs(self) -> int:
        return self.categories

    def family(self, *parameters: Tensor) -> TorchDistribution:
        codes: TorchDistribution = dist.Categorical(logits=torch.stack(parameters, dim=-1))
        return codes

    @property
    def requirement(self) -> str:
        return (
            f"A Categorical({self.categories}) likelihood needs integers in 0…{self.categories - 1}: "
            "recode the categories, or give their number as categories."
        )

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x) | (x >= self.categories)

    def marginal_output(self, x: Tensor) -> Tensor:
        counts = functional.one_hot(x.long(), self.categories).sum(0)
        logits = ((counts + 0.5) / (len(x) + 0.5 * self.categories)).log().to(x.dtype)
        return logits.movedim(-1, 0).flatten(0, 1)


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts that vary more than a Poisson; the decoder gives the log mean.

    The variance is μ + μ²/r. The inverse dispersion r is ``exp`` of a parameter that is shared by all
    features, one per feature, or predicted by the decoder; r → ∞ is the Poisson.

    Parameters
    ----------
    dispersion
        "shared", "feature" or "predicted".
    init_inverse_dispersion
        r at the start.

    Examples
    --------
    >>> counts = NegativeBinomial().distribution(torch.zeros(2), torch.tensor(0.0))
    >>> counts.mean, counts.variance
    (tensor([1., 1.]), tensor([2., 2.]))
    """

    dispersion: Dispersion = "feature"
    init_inverse_dispersion: float = 1.0

    def __post_init__(self) -> None:
        _require_dispersion(self.dispersion)
        _require_positive("init_inverse_dispersion", self.init_inverse_dispersion)

    @property
    def outputs(self) -> int:
        return 2 if self.dispersion == "predicted" else 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:
        # zero: `family` adds log init_inverse_dispersion, to this parameter and to predictions alike
        return _dispersion_parameter(self.dispersion, event_shape)

    def family(self, *parameters: Tensor) -> TorchDistribution:
        log_mean, raw = parameters
        log_r = raw + math.log(self.init_inverse_dispersion)
        counts: TorchDistribution = dist.NegativeBinomial(log_r.exp(), logits=log_mean - log_r)
        return counts

    @property
    def requirement(self) -> str:
        return "A NegativeBinomial likelihood needs non-negative integers: use Normal or StudentT for reals."

    def invalid(self, x: Tensor) -> Tensor:
        return _not_counts(x)

    def marginal_output(self, x: Tensor) -> Tensor:
        return _with_zero_dispersion(_smoothed_mean(x).log(), self.outputs)


@dataclass(frozen=True)
class _LocationScale(Likelihood):
    """Reals around a location, with a scale that is fixed or learned through a scale map."""

    scale: float | ScaleMap = field(default_factory=LogScale)
    dispersion: Dispersion = "shared"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_dispersion(self.dispersion)
        _require_positive("init_scale", self.init_scale)
        if isinstance(self.scale, (int, float)):
            _require_positive("scale", self.scale)
        elif not isinstance(self.scale, ScaleMap):
            raise TypeError(
                f"scale={self.scale!r} is neither a number nor a scale map: "
                'give pyro_vae.scales.get("softplus"), for example.'
            )

    @cached_property
    def _init_raw(self) -> float:
        """Where the map gives init_scale: learned parameters and predictions are counted from there."""
        assert isinstance(self.scale, ScaleMap)
        return float(self.scale.inv(torch.tensor(self.init_scale, dtype=torch.float64)))

    @property
    def outputs(self) -> int:
        return 2 if self.dispersion == "predicted" and isinstance(self.scale, ScaleMap) else 1

    def initial_dispersion(self, event_shape: torch.Size) -> Tensor | None:
        return (
            _dispersion_parameter(self.dispersion, event_shape) if isinstance(self.scale, ScaleMap) else None
        )

    def family(self, *parameters: Tensor) -> TorchDistribution:
        if isinstance(self.scale, ScaleMap):
            loc, raw = parameters
            log_scale = self.scale.log_scale(raw + self._init_raw)
        else:
            (loc,) = parameters
            log_scale = loc.new_full((), math.log(self.scale))
        return LocationScale(self._standard(loc), loc, log_scale)

    @abstractmethod
    def _standard(self, like: Tensor) -> TorchDistribution:
        """The distribution at location 0 and scale 1, in the dtype and on the device of ``like``."""

    @property
    def requirement(self) -> str:
        return f"A {type(self).__name__} likelihood needs finite values: drop such rows or impute the values."

    def invalid(self, x: Tensor) -> Tensor:
        return ~x.isfinite()

    def marginal_output(self, x: Tensor) -> Tensor:
        return _with_zero_dispersion(x.mean(0), self.outputs)


@dataclass(frozen=True)
class Normal(_LocationScale):
    r"""Real data; the decoder gives the location.

    .. math:: \log p(x) = -\tfrac12 \big((x - \mu) e^{-\log\sigma}\big)^2 - \log\sigma - \tfrac12\log 2\pi

    Parameters
    ----------
    scale
        σ itself, a number, or a scale map (``pyro_vae.scales.get("softplus")``) through which σ is learned;
        the default learns log σ.
    dispersion
        Of a learned σ: "shared" by all features, one per "feature", or "predicted" by the decoder, which then
        gives two outputs per feature.
    init_scale
        σ at the start, the same under every map.

    Examples
    --------
    >>> Normal(scale=2.0).distribution(torch.zeros(3)).stddev
    tensor([2., 2., 2.])
    >>> Normal(dispersion="predicted").outputs
    2
    """

    def _standard(self, like: Tensor) -> TorchDistribution:
        standard: TorchDistribution = dist.Normal(like.new_zeros(()), like.new_ones(()))
        return standard


@dataclass(frozen=True)
class StudentT(_LocationScale):
    """Real data with outliers: as `Normal`, with ``df`` degrees of freedom.

    Examples
    --------
    >>> StudentT(scale=1.0, df=1.0).distribution(torch.zeros(1)).log_prob(torch.tensor([1.0])).exp()
    tensor(0.1592)
    """

    df: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive("df", self.df)

    def _standard(self, like: Tensor) -> TorchDistribution:
        zero = like.new_zeros(())
        standard: TorchDistribution = dist.StudentT(zero + self.df, zero, zero + 1)
        return standard


def _dispersion_parameter(dispersion: Dispersion, event_shape: torch.Size) -> Tensor | None:
    """A parameter of zeros, one or one per feature; None if the decoder predicts it."""
    shapes = {"shared": torch.Size(), "feature": event_shape}
    return torch.zeros(shapes[dispersion]) if dispersion in shapes else None


def _with_zero_dispersion(location: Tensor, outputs: int) -> Tensor:
    """``location``, followed by zeros for a dispersion that the decoder predicts."""
    return location if outputs == 1 else torch.cat([location, torch.zeros_like(location)])


def _require_dispersion(dispersion: str) -> None:
    if dispersion not in get_args(Dispersion):
        raise ValueError(f'dispersion={dispersion!r}: it is "shared", "feature" or "predicted".')


def _require_positive(name: str, value: float) -> None:
    if not (0 < value < math.inf):
        raise ValueError(f"{name}={value!r}: it must be a positive number.")


_BY_NAME: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "binomial": Binomial,
    "categorical": Categorical,
    "continuous-bernoulli": ContinuousBernoulli,
    "negative-binomial": NegativeBinomial,
    "normal": Normal,
    "poisson": Poisson,
    "student-t": StudentT,
}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_BY_NAME)


def get(name: str, **arguments: Any) -> Likelihood:
    """A likelihood by name.

    Raises
    ------
    ValueError
        If there is no such name, or the likelihood needs an argument that was not given.

    Examples
    --------
    >>> get("binomial", total_count=16)
    Binomial(total_count=16)
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"No likelihood is called {name!r}.{hint} The names are {', '.join(names())}.")
    try:
        return _BY_NAME[name](**arguments)
    except TypeError as error:
        raise ValueError(f"The likelihood {name!r} cannot be made from {arguments}: {error}.") from error
