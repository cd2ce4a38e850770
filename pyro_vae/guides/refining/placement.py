"""A model runs with its latents at given real coordinates, and says its density for each observation."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Transform, biject_to

from pyro_vae.guides.precision import exact_log_prob


class Placement(Messenger):
    """Gives latents the values ``biject_to(support)(u)``, and keeps log |dz/du|.

    The support is that of the very call: it may depend on the observation, on a parameter or on another
    latent.

    Parameters
    ----------
    free
        Coordinates u by site, (rows, size), a row for each place in the plate of the observations.
    dim
        Where that plate lies.
    """

    def __init__(self, free: Mapping[str, Tensor], dim: int) -> None:
        super().__init__()
        self.free, self.dim = free, dim
        self.log_jacobian: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.free or msg["is_observed"]:
            return
        transform, free = _to_support(fn.support, name), self.free[name]
        shape, axis = transform.inverse_shape(fn.batch_shape + fn.event_shape), _axis(msg, self.dim)
        if axis < 0 or shape[axis] != len(free):
            found = shape[axis] if axis >= 0 else "no"
            raise ValueError(
                f"latent '{name}' has {found} rows where {len(free)} observations were given; draw it in a "
                f"plate over the observations at dim {self.dim}, pyro.plate('data', len(x))"
            )
        shaped = _in_its_place(free, shape, axis)
        msg["value"] = transform(shaped)
        jacobian = transform.log_abs_det_jacobian(shaped, msg["value"])
        self.log_jacobian[name] = jacobian.movedim(axis, 0).reshape(len(free), -1).sum(-1)


class _Reading(Messenger):
    """Gives latents these values, (rows, ...) by site, and keeps their coordinates."""

    def __init__(self, values: Mapping[str, Tensor], dim: int) -> None:
        super().__init__()
        self.values, self.dim = values, dim
        self.free: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name in self.values and not msg["is_observed"]:
            shape = fn.batch_shape + fn.event_shape
            msg["value"] = _in_its_place(self.values[name], shape, _axis(msg, self.dim))
            self.free[name] = coordinates_of(msg, msg["value"], self.dim)


def placed_trace(
    model: Callable[..., Any],
    free: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dim: int,
) -> tuple[Any, Placement]:
    """One run of the model with these coordinates, which no handler around it sees; the plate of the
    observations lies at ``dim``."""
    placement = Placement(free, dim)
    with poutine.block():
        trace = poutine.trace(placement(model)).get_trace(*args, **kwargs)
    return trace, placement


def log_joint(
    model: Callable[..., Any],
    free: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dim: int,
) -> tuple[Tensor, Tensor]:
    r"""log p(z(u)) + log \|dz/du\| and log p(x|z(u)) of each observation, in nats, (rows,) each.

    Masks count; subsampling and annealing scales do not. Sites outside of the plate are the same for all and
    belong to nobody: they are left out. Raises ValueError if the model draws a latent that has no coordinates
    here, or the plate has other rows."""
    trace, placement = placed_trace(model, free, args, kwargs, dim)
    if not any(site["type"] == "sample" and site["is_observed"] for site in trace.nodes.values()):
        raise ValueError(
            "the model observes nothing, so its latents have no posterior; give the whole model, not the "
            "part of it that poutine.block leaves to a guide"
        )
    nothing = next(iter(free.values())).new_zeros(())
    prior = sum(placement.log_jacobian.values(), nothing)
    likelihood = nothing.expand(prior.shape)
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or site["infer"].get("_deterministic"):
            continue
        if not site["is_observed"] and name not in free:
            raise ValueError(
                f"the model draws '{name}', for which there are no values; fix it by "
                f"poutine.condition(model, data={{'{name}': ...}}), or marginalize it in the model"
            )
        if any(frame.dim == dim for frame in site["cond_indep_stack"] if frame.vectorized):
            log_prob = scale_and_mask(exact_log_prob(site["fn"], site["value"]), mask=site["mask"])
            front = rows_in_front(site, log_prob, len(next(iter(free.values()))), dim)
            total = front.reshape(len(front), -1).sum(-1).to(prior.dtype)
            if site["is_observed"]:
                likelihood = likelihood + total
            else:
                prior = prior + total
    return prior, likelihood


def placed_values(
    model: Callable[..., Any],
    free: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dim: int,
) -> dict[str, Tensor]:
    """The latents at these coordinates (rows, size) by site, with the row in front."""
    trace, _ = placed_trace(model, free, args, kwargs, dim)
    rows = len(next(iter(free.values())))
    return {name: rows_in_front(trace.nodes[name], trace.nodes[name]["value"], rows, dim) for name in free}


def read_coordinates(
    model: Callable[..., Any],
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dim: int,
) -> dict[str, Tensor]:
    """The coordinates (rows, size) of latents, which have the row in front: the reverse of the above, also
    where the support of one latent depends on what another one is."""
    reading = _Reading(values, dim)
    with poutine.block():
        poutine.trace(reading(model)).get_trace(*args, **kwargs)
    return reading.free


def rows_in_front(site: Any, tensor: Tensor, rows: int, dim: int) -> Tensor:
    """Move the observation, whose plate lies at ``dim``, to the front of a tensor that has the site's batch
    shape first."""
    axis = _axis(site, dim)
    if not 0 <= axis < tensor.dim() or tensor.shape[axis] != rows:
        found = tensor.shape[axis] if 0 <= axis < tensor.dim() else "no"
        raise ValueError(
            f"site '{site['name']}' has {found} rows where {rows} observations were given; the plate must "
            "have one row for each observation passed in, without subsampling of its own"
        )
    return tensor.movedim(axis, 0)


def coordinates_of(site: Any, value: Tensor, dim: int) -> Tensor:
    """The coordinates u of a site's value, (rows, size): the reverse of a :class:`Placement`."""
    free: Tensor = _to_support(site["fn"].support, site["name"]).inv(value)
    axis = _axis(site, dim)
    return free.movedim(axis, 0).reshape(value.shape[axis], -1)


def evaluating(program: Callable[..., Any]) -> ExitStack:
    """A program's modules in evaluation mode, for a block: dropout and batch statistics are for training."""
    stack = ExitStack()
    root = getattr(program, "__self__", program)
    for module in root.modules() if isinstance(root, torch.nn.Module) else ():
        if module.training:
            module.training = False
            stack.callback(setattr, module, "training", True)
    return stack


def _axis(site: Any, dim: int) -> int:
    """Of the observations in a site's batch shape; negative where it has none."""
    return len(site["fn"].batch_shape) + dim


def _in_its_place(rows: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """What has a row for each observation in front, in the shape that a site has for it."""
    return rows.reshape(len(rows), *shape[:axis], *shape[axis + 1 :]).movedim(0, axis)


def _to_support(support: Any, name: str) -> Transform:
    try:
        transform: Transform = biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent '{name}' has no real coordinates (its support is {support}); marginalize it in the model"
        ) from error
    return transform
