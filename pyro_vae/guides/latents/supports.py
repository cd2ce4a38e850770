"""The support of a latent as a guide keeps it: one for all observations, of a mixture that of its parts."""

import copy

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from pyro_vae.guides.latents import LatentError


def of_the_parts(mixture: MixtureSameFamilyConstraint) -> Constraint:
    """The support of a mixture's components, which must have the same bounds. Raises ValueError if they do
    not."""
    outer: Constraint = mixture.base_constraint
    inner = innermost(outer)
    bounds = {key: getattr(inner, key, None) for key in ("lower_bound", "upper_bound")}
    found = {key: bound for key, bound in bounds.items() if isinstance(bound, Tensor) and bound.dim()}
    if not found:
        return outer
    inner, depth = copy.copy(inner), outer.event_dim
    for key, bound in found.items():
        axis = bound.dim() - 1 - depth  # of the components
        if axis < 0:
            continue
        if bool((bound != bound.narrow(axis, 0, 1)).any()):
            raise LatentError(
                f"the components of a mixture differ in their {key}, so that it has no support with real "
                "coordinates; give each component the same bounds"
            )
        setattr(inner, key, bound.select(axis, 0))
    event_dim = outer.event_dim - inner.event_dim
    return constraints.independent(inner, event_dim) if event_dim else inner


def innermost(support: Constraint) -> Constraint:
    """A support without the event dimensions that ``.to_event`` declared."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def shared_support(support: Constraint, name: str, event_dim: int) -> Constraint:
    """The support without the batch dimensions of its bounds, which must be the same for all observations.
    Raises ValueError if they are not, or are learned."""
    if isinstance(support, MixtureSameFamilyConstraint):
        support = of_the_parts(support)
    shared = copy.copy(innermost(support))
    for key in ("lower_bound", "upper_bound"):
        bound = getattr(shared, key, None)
        if not isinstance(bound, Tensor):
            continue
        if bound.requires_grad:
            raise LatentError(
                f"the {key} of latent '{name}' is a learned parameter, but the guide keeps the support of "
                "its first call: draw the latent on a fixed support and scale it inside the model"
            )
        while bound.dim() > event_dim:
            if bool((bound != bound[:1]).any()):
                raise LatentError(
                    f"the {key} of latent '{name}' differs between observations, but the guide has one "
                    "support for all: draw the latent on a fixed support and scale it inside the model"
                )
            bound = bound[0]
        # A number follows the guide to any device.
        same = bool((bound == bound.flatten()[0]).all())
        setattr(shared, key, float(bound.flatten()[0]) if same else bound)
    return shared


# torch has no entry for mixtures, so no autoguide would start on one either.
@biject_to.register(MixtureSameFamilyConstraint)  # type: ignore[untyped-decorator]
def _bijection(mixture: MixtureSameFamilyConstraint) -> Transform:
    return biject_to(of_the_parts(mixture))  # type: ignore[no-any-return]


@transform_to.register(MixtureSameFamilyConstraint)  # type: ignore[untyped-decorator]
def _transform(mixture: MixtureSameFamilyConstraint) -> Transform:
    return transform_to(of_the_parts(mixture))  # type: ignore[no-any-return]
