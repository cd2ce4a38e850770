"""Say what to do when a fit meets numbers that are not finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.guides.heads import HasRawParameters, ScaleHead
from pyro_vae.pairs.isolation import Program, owner
from pyro_vae.pairs.support import refuse_impossible

REMEDY = (
    "try a smaller lr, max_norm=10.0 to clip gradients, data scaled to unit size (counts: by log1p in the "
    "encoder), or a scale map that grows slowly ('softplus')"
)


BAD_STEPS_IN_A_ROW = 3
"""One bad step can be a rare draw; three in a row are a fit that will not come back."""


class NonFiniteError(ArithmeticError):
    """Three steps in a row gave a loss or a gradient that is not finite; the parameters are the last good
    ones."""


def explain(
    model: Program, guide: Program, batch: tuple[Any, ...], gradients: dict[str, Tensor], step: int
) -> str:
    """One sentence that names where the numbers break first (a latent's loc or scale, an observed density, or
    a gradient), the latent whose σ is furthest from 1, and the remedies."""
    with torch.no_grad(), forked_streams(), making_tensors_on(batch[0].device):
        with _raw_outputs(guide) as raws:
            guide_trace = poutine.trace(guide).get_trace(*batch)
        culprit = _bad_latent(guide_trace, guide, raws)
        if not culprit and (data := _impossible(model, guide_trace, batch)):
            return f"step {step}: {data}"
        if not culprit:
            culprit = _bad_density(model, guide_trace, batch) or _bad_gradient(gradients)
            extreme = _most_extreme(guide_trace, guide, raws)
            culprit += f" ({extreme})" if extreme else ""
    return f"step {step}: {culprit}; {REMEDY}"


@contextmanager
def _raw_outputs(guide: Program) -> Iterator[list[Tensor]]:
    """Collects what the guide's scale heads hand to their maps."""
    found: list[Tensor] = []
    module = owner(guide)
    heads = [] if module is None else [part for part in module.modules() if isinstance(part, ScaleHead)]

    def note(_layer: nn.Module, _features: Any, raw: Tensor) -> None:
        found.append(raw)

    hooks = [head.raw.register_forward_hook(note) for head in heads]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _bad_latent(trace: Trace, guide: Program, raws: list[Tensor]) -> str:
    """The first parameter of a latent that is not finite, or a draw."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        base = _base(site["fn"])
        for parameter in ("loc", "log_scale", "scale"):
            value = getattr(base, parameter, None)
            if not torch.is_tensor(value):
                continue
            bad = ~torch.isfinite(value)
            if parameter == "scale" and not hasattr(base, "log_scale"):
                bad |= value <= 0
            if bool(bad.any()):
                where = _first(bad)
                about = (
                    _scale_at(base, where, _raw_at(name, where, guide, raws)) if parameter != "loc" else ""
                )
                return (
                    f"the guide's site {name!r} has {parameter} = {float(value[where]):.3g}{about} "
                    f"at {_place(where)}"
                )
        draw = site["value"]
        if torch.is_tensor(draw) and draw.is_floating_point() and not bool(torch.isfinite(draw).all()):
            where = _first(~torch.isfinite(draw))
            return f"the draw of the guide's site {name!r} is {float(draw[where]):.3g} at {_place(where)}"
    return ""


def _impossible(model: Program, guide_trace: Trace, batch: tuple[Any, ...]) -> str:
    """Which row of the data has no density, where the data are to blame; else nothing."""
    with pyro.validation_enabled(True):
        try:
            trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
            refuse_impossible(trace, "a batch of data")
        except ValueError as error:  # of the data, or of a parameter, which is told as such
            return str(error) if str(error).startswith("a batch of data holds") else ""
    return ""


def _bad_density(model: Program, guide_trace: Trace, batch: tuple[Any, ...]) -> str:
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob"]).all()):
            row = _first(~torch.isfinite(site["log_prob"]))
            observation = row[-1] if row else 0
            value = float(site["log_prob"][row])
            return f"log p of the model's site {name!r} is {value} for row {observation} of the batch"
    return ""


def _bad_gradient(gradients: dict[str, Tensor]) -> str:
    bad = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
    if bad:
        return f"the loss is finite, but the gradient of {bad[0]} is not"
    if gradients:
        largest = max(gradients, key=lambda name: float(gradients[name].abs().max()))
        size = float(gradients[largest].abs().max())
        return f"the loss or the norm of its gradient overflows; the gradient of {largest} reaches {size:.3g}"
    return "the loss or its gradient is not finite"


def _most_extreme(trace: Trace, guide: Program, raws: list[Tensor]) -> str:
    """The latent whose σ is furthest from 1, where the guide is Normal underneath."""
    furthest, told = -1.0, ""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        base = _base(site["fn"])
        log_scale = getattr(base, "log_scale", None)
        if log_scale is None and torch.is_tensor(getattr(base, "scale", None)):
            log_scale = base.scale.log()
        if not torch.is_tensor(log_scale) or log_scale.numel() == 0:
            continue
        flat = int(log_scale.abs().argmax())
        where = tuple(int(i) for i in np.unravel_index(flat, log_scale.shape))
        if float(log_scale[where].abs()) > furthest:
            furthest = float(log_scale[where].abs())
            about = _scale_at(base, where, _raw_at(name, where, guide, raws)).strip(" ()")
            told = f"the guide's site {name!r} is at {about} at {_place(where)}, its σ furthest from 1"
    return told


def _scale_at(base: Any, where: tuple[int, ...], raw: str) -> str:
    return f" ({raw}σ = {float(base.scale[where]):.3g})"


def _raw_at(site: str, where: tuple[int, ...], guide: Program, raws: list[Tensor]) -> str:
    """The number that the scale map read for this latent, if it came from a head or parameter of ours."""
    module = owner(guide)
    if len(raws) == 1:
        before = 0
        for latent in getattr(module, "sites", ()):
            if latent.name == site:
                break
            before += latent.size
        column = before + (where[-1] if len(where) > 1 else 0)
        if column < raws[0].shape[-1] and where and where[0] < len(raws[0]):
            return f"raw = {float(raws[0][where[0], column]):.3g}, "
    if isinstance(module, HasRawParameters):
        own = module.own_raw_parameters()
        for name, (raw, _) in own.items():
            if (len(own) == 1 or name.endswith(f".{site}")) and raw.dim() <= len(where):
                return f"raw = {float(raw[where[len(where) - raw.dim() :]]):.3g}, "
    return ""


def _base(distribution: Any) -> Any:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def _place(where: tuple[int, ...]) -> str:
    dimension = where[-1] if len(where) > 1 else 0
    row = where[0] if where else 0
    return f"latent dimension {dimension}, row {row} of the batch"


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])
