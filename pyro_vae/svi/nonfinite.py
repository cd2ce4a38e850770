"""What to say when a fit meets numbers that are not finite."""

from collections.abc import Sequence
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_vae.svi.objective import Program

__all__ = ["NonFiniteError", "explain"]

REMEDY = (
    "try a smaller lr, max_norm=10.0 to clip gradients, data scaled to unit size, "
    "or a scale map that grows slowly ('softplus')"
)


class NonFiniteError(ArithmeticError):
    """Three steps in a row gave a loss or a gradient that is not finite; the parameters are the last good
    ones."""


def explain(
    model: Program, guide: Program, batch: tuple[Any, ...], gradients: dict[str, Tensor], step: int
) -> str:
    """One sentence that names where the numbers break first: a latent's loc or scale, an observed density, or
    a gradient."""
    return f"step {step}: {_culprit(model, guide, batch, gradients)}; {REMEDY}"


def _culprit(model: Program, guide: Program, batch: tuple[Any, ...], gradients: dict[str, Tensor]) -> str:
    with torch.no_grad(), torch.random.fork_rng():
        guide_trace = poutine.trace(guide).get_trace(*batch)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                found = _first_bad_parameter(site["fn"])
                if found:
                    return f"the guide's site {name!r} has {found}"
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
        model_trace.compute_log_prob()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and not bool(torch.isfinite(site["log_prob"]).all()):
                row = _first(~torch.isfinite(site["log_prob"]))
                value = float(site["log_prob"][row])
                observation = row[-1] if row else 0
                return f"log p of the model's site {name!r} is {value} for row {observation} of the batch"
    bad = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
    if bad:
        return f"the loss is finite, but the gradient of {bad[0]} is not"
    return "the loss or its gradient is not finite"


def _first_bad_parameter(distribution: Any) -> str:
    base = distribution
    while hasattr(base, "base_dist"):
        base = base.base_dist
    for parameter in ("loc", "log_scale", "scale"):
        value = getattr(base, parameter, None)
        if not torch.is_tensor(value):
            continue
        bad = ~torch.isfinite(value)
        if parameter == "scale" and not hasattr(base, "log_scale"):
            bad |= value <= 0
        if bool(bad.any()):
            where = _first(bad)
            sigma = f" (σ = {float(base.scale[where]):.3g})" if parameter == "log_scale" else ""
            return (
                f"{parameter} = {float(value[where]):.3g}{sigma} at latent dimension {where[-1]}, "
                f"row {where[0]} of the batch"
            )
    return ""


def _first(mask: Tensor) -> tuple[int, ...]:
    rows: Sequence[int] = mask.nonzero()[0].tolist()
    return tuple(rows)
