"""The constraint "a σ of this map", by which torch and Pyro find a scale map."""

from typing import Any, Protocol

from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to


class _Map(Protocol):
    """What a constraint asks of its scale map."""

    @property
    def bijective(self) -> bool: ...

    def contains(self, scale: Tensor) -> Tensor: ...


class ScaleConstraint(constraints.greater_than):
    """The constraint "a σ of this map": positive, and within the map's range.

    Torch answers for a constraint by its type: each :class:`ScaleMap` class has a subclass of this one, and
    the instance holds the map with its options.

    Attributes
    ----------
    map : ScaleMap
        The map that ``transform_to`` and ``biject_to`` give for this constraint.

    Examples
    --------
    >>> import pyro, torch
    >>> from pyro_vae.guides import scales
    >>> softplus = scales.get("softplus", beta=2.0)
    >>> pyro.param("sigma", torch.tensor(0.1), constraint=softplus.constraint)
    tensor(0.1000, grad_fn=<ExpBackward0>)
    >>> torch.distributions.transform_to(softplus.constraint)
    Softplus(beta=2.0)
    """

    def __init__(self, map: _Map) -> None:
        super().__init__(lower_bound=0.0)  # type: ignore[no-untyped-call]
        self.map = map

    def check(self, value: Tensor) -> Tensor:
        return self.map.contains(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScaleConstraint) and self.map == other.map

    def __hash__(self) -> int:
        return hash((ScaleConstraint, self.map))

    def __repr__(self) -> str:
        return f"{self.map!r}.constraint"

    def __reduce__(self) -> tuple[Any, ...]:
        # Its type is made with the map's class and has no name to be imported by.
        return getattr, (self.map, "constraint")


def new_constraint_type(map_class: type[_Map]) -> type[ScaleConstraint]:
    """The constraint of a new map class, registered in ``transform_to`` and ``biject_to``."""
    namespace = {"__doc__": ScaleConstraint.__doc__, "__module__": map_class.__module__}
    constraint_type = type(f"{map_class.__name__}Constraint", (ScaleConstraint,), namespace)
    transform_to.register(constraint_type, _map_of)
    biject_to.register(constraint_type, _bijective_map_of)
    return constraint_type


def _map_of(constraint: ScaleConstraint) -> _Map:
    return constraint.map


def _bijective_map_of(constraint: ScaleConstraint) -> _Map:
    if not constraint.map.bijective:
        raise NotImplementedError(
            f"biject_to has no answer for {constraint!r}: the map is not bijective. "
            "Use transform_to, as pyro.param and the autoguides do, or another map."
        )
    return constraint.map
