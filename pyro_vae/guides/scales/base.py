"""What every scale map has: σ, its log, its slope and its inverse."""

import inspect
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from pyro_vae.arguments import brief
from pyro_vae.guides.precision import at_least_float32
from pyro_vae.guides.scales.constraint import ScaleConstraint, new_constraint_type


class ScaleMap(Transform):
    r"""A map :math:`g` from an unconstrained ``raw`` to a scale :math:`\sigma = g(\text{raw}) > 0` that knows
    its own logarithm.

    The density of a Normal needs log σ, the sampler needs σ, an optimizer moves ``raw``: a scale map answers
    all three from one formula, so that they cannot disagree. ``map(raw)`` is ``map.log_scale(raw).exp()`` to
    the last bit, and log σ is never the log of a rounded σ.

    A scale map is a :class:`torch.distributions.transforms.Transform`: it composes, caches, and has
    ``map.inv``, the inverse transform, which is called as ``map.inv(scale)``.

    **Precision.** float32 and float64 are kept; float16 and bfloat16 inputs are cast to float32 first and
    give float32 results (gradients flow back in the dtype of the input).

    **A map of your own** subclasses this and writes ``_log_scale`` and ``_raw``, and ``_slope`` where a
    closed form beats automatic differentiation. Constructor arguments are kept as attributes of the same
    name; they make up the map's ``repr``, equality and hash. The constraint and its registration come by
    themselves. :func:`~pyro_vae.guides.scales.register` gives it a name.

    Attributes
    ----------
    name : str
        The name under which :func:`~pyro_vae.guides.scales.get` knows it.
    formula : str
        σ as a formula of raw, in one line.
    remark : str
        What to know before choosing it, in one line.
    log_slope : float or None
        The constant a where log σ = a · raw, else None. :func:`~pyro_vae.guides.scales.convert` rewrites
        linear layers between maps that have one.

    Examples
    --------
    >>> import torch
    >>> from pyro_vae.guides import scales
    >>> softplus = scales.get("softplus")
    >>> raw = torch.tensor([-200.0, 0.0, 3.0])
    >>> softplus(raw)
    tensor([0.0000, 0.6931, 3.0486])
    >>> softplus.log_scale(raw)
    tensor([-200.0000,   -0.3665,    1.1147])
    >>> softplus.inv(torch.tensor(0.1))
    tensor(-2.2522)

    A map of one's own:

    >>> class PowerOfTwo(scales.ScaleMap):
    ...     formula = "2^raw"
    ...     def _log_scale(self, raw):
    ...         return raw * 0.6931471805599453
    ...     def _raw(self, scale):
    ...         return scale.log2()
    >>> PowerOfTwo()(torch.tensor(3.0))
    tensor(8.)
    """

    domain = constraints.real
    codomain = constraints.positive
    bijective = True
    name: ClassVar[str]
    formula: ClassVar[str] = ""
    remark: ClassVar[str] = ""
    log_slope: ClassVar[float | None] = None
    _constraint_type: ClassVar[type[ScaleConstraint]]

    def __init__(self) -> None:
        super().__init__(cache_size=0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()
        # torch's registries look up a constraint by its type alone, so each class has its own.
        cls._constraint_type = new_constraint_type(cls)

    def _log_scale(self, raw: Tensor) -> Tensor:
        """log σ; ``raw`` is float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} has no _log_scale(raw).")

    def _raw(self, scale: Tensor) -> Tensor:
        """The raw whose σ is ``scale``, which is within the range and float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} has no _raw(scale).")

    def _slope(self, raw: Tensor) -> Tensor:
        """d log σ / d raw; ``raw`` is float32 or wider."""
        slope: Tensor = torch.func.grad(lambda r: self._log_scale(r).sum())(raw)
        return slope

    @property
    def sign(self) -> int:
        """+1: σ never falls as raw grows."""
        return 1

    @property
    def bounds(self) -> tuple[float, float]:
        """Infimum and supremum of σ."""
        return 0.0, math.inf

    @property
    def constraint(self) -> ScaleConstraint:
        """The constraint "a scale of this map", for ``pyro.param``, ``PyroParam`` and Pyro's autoguides.

        It is registered in ``transform_to`` and ``biject_to``, which give this map back.
        """
        return self._constraint_type(self)

    def log_scale(self, raw: Tensor) -> Tensor:
        """log σ, computed directly: finite, with a finite gradient, for every raw in [-1e4, 1e4].

        Parameters
        ----------
        raw : Tensor
            Any shape.

        Returns
        -------
        Tensor
            log σ of the same shape, float32 or wider.
        """
        return self._log_scale(at_least_float32(_floating(raw, "raw")))

    def slope(self, raw: Tensor) -> Tensor:
        """d log σ / d raw: how fast log σ moves with raw.

        Parameters
        ----------
        raw : Tensor
            Any shape.

        Returns
        -------
        Tensor
            The derivative, of the same shape, float32 or wider.
        """
        return self._slope(at_least_float32(_floating(raw, "raw")))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """log |dσ/draw| = log σ + log |d log σ/draw| at raw ``x``.

        Parameters
        ----------
        x : Tensor
            raw, any shape.
        y : Tensor
            ``self(x)``; not needed here, torch's signature has it.

        Returns
        -------
        Tensor
            Of the shape of ``x``, float32 or wider.

        Raises
        ------
        NotImplementedError
            If the map is not bijective: a density has no change of variables under it.
        """
        if not self.bijective:
            raise NotImplementedError(
                f"{self!r} is not bijective, so it has no change of variables and no log_abs_det_jacobian."
            )
        return self._log_abs_det_jacobian(at_least_float32(x))

    def _log_abs_det_jacobian(self, raw: Tensor) -> Tensor:
        return self._log_scale(raw) + self._slope(raw).abs().log()

    def contains(self, scale: Tensor) -> Tensor:
        """Whether each value is a σ that this map can give, up to the rounding of σ = exp(log σ).

        Parameters
        ----------
        scale : Tensor
            Any shape.

        Returns
        -------
        Tensor
            Booleans of the same shape; False for NaN.
        """
        scale = at_least_float32(_floating(scale, "scale"))
        low, high = self.bounds
        inside = scale > 0
        if low > 0:
            inside = inside & (scale >= low * (1 - _rounding(low, scale.dtype)))
        if high < math.inf:
            inside = inside & (scale <= high * (1 + _rounding(high, scale.dtype)))
        return inside

    def _call(self, x: Tensor) -> Tensor:
        return self.log_scale(x).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        scale = at_least_float32(_floating(y, "scale"))
        if _has_false(self.contains(scale)):
            low, high = self.bounds
            raise ValueError(
                f"inv of {self!r}: scale must lie in its range, {low:g} to {high:g}, but goes from "
                f"{scale.min().item():g} to {scale.max().item():g}. Give scales in the range, or another map."
            )
        return self._raw(scale)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments by name: what makes this map differ from others of its class."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def with_cache(self, cache_size: int = 1) -> Self:
        """The same map with torch's cache of the last (raw, σ)."""
        if self._cache_size == cache_size:
            return self
        other = type(self)(**self.options())
        Transform.__init__(other, cache_size=cache_size)
        return other

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.options() == other.options()

    def __hash__(self) -> int:
        return hash((type(self), *self.options().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options().items())})"


def _floating(value: Tensor, name: str) -> Tensor:
    """``value``, if it is a tensor of floating point."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {brief(value)}; give a tensor")
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}; give floating point: {name}.float()")
    return value


def _rounding(bound: float, dtype: torch.dtype) -> float:
    """How far σ = exp(log σ) may round beyond a bound, relative to it."""
    return 4 * torch.finfo(dtype).eps * (1 + abs(math.log(bound)))


def _has_false(condition: Tensor) -> bool:
    """Whether some value is False; no, where values cannot be looked at."""
    try:
        return not condition.all()
    except RuntimeError:  # under vmap, or while a graph is captured
        return False
