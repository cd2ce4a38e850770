"""From a trained head under one map to the same guide under another."""

import torch
from torch import nn

from pyro_vae.arguments import kind
from pyro_vae.guides.scales.base import ScaleMap
from pyro_vae.guides.scales.registry import get


def convert(head: nn.Linear, source: str | ScaleMap, target: str | ScaleMap) -> nn.Linear:
    """Rewrite the last linear layer of a trained encoder so that its guide is the same under another map.

    Where log σ = a · raw under both maps, the new raw is a_source/a_target times the old one: an exact
    rewrite of weight and bias, between logvar and logstd a factor of two.

    Parameters
    ----------
    head : nn.Linear
        The layer whose output is raw, and nothing else.
    source : str or ScaleMap
        The map that the head was trained with.
    target : str or ScaleMap
        The map to use from now on.

    Returns
    -------
    nn.Linear
        A new, plain layer; ``head`` is left as it is.

    Raises
    ------
    TypeError
        If ``head`` is not an ``nn.Linear``.
    ValueError
        If no linear rewrite exists.

    Examples
    --------
    >>> import torch
    >>> head = torch.nn.Linear(3, 2)
    >>> new = convert(head, "logvar", "logstd")
    >>> features = torch.randn(5, 3)
    >>> torch.equal(get("logstd")(new(features)), get("logvar")(head(features)))
    True
    """
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head is {kind(head)}; give the nn.Linear whose output is raw")
    source, target = get(source), get(target)
    # Without initialization: it would draw from the caller's random stream.
    new: nn.Linear = nn.utils.skip_init(
        nn.Linear,
        head.in_features,
        head.out_features,
        bias=head.bias is not None,
        device=head.weight.device,
        dtype=head.weight.dtype,
    )
    ratio = _raw_ratio(source, target)
    with torch.no_grad():
        new.weight.copy_(ratio * head.weight)
        if head.bias is not None:
            new.bias.copy_(ratio * head.bias)
    return new


def _raw_ratio(source: ScaleMap, target: ScaleMap) -> float:
    """raw under target, divided by raw under source, for the same σ."""
    if source == target:
        return 1.0
    for which, scale_map in (("source", source), ("target", target)):
        if scale_map.log_slope is None:
            raise ValueError(
                f"convert: no linear layer turns raw of {source!r} into raw of {target!r}, because log σ is "
                f"not proportional to raw under the {which}. Keep {source!r}, or train the head again."
            )
    return source.log_slope / target.log_slope  # type: ignore[operator]
