"""From a trained head under one map to the same guide under another."""

import copy

import torch
from torch import nn

from pyro_vae.guides.scales.base import ScaleMap

__all__ = ["convert"]


def convert(head: nn.Linear, source: ScaleMap, target: ScaleMap) -> nn.Linear:
    """Rewrite the last linear layer of a trained encoder so that the guide is the same function under another map.

    Where log σ = a · raw under both maps, the new raw is a_source/a_target times the old one: an exact rewrite
    of weight and bias, between logvar and logstd a factor of two.

    Parameters
    ----------
    head : nn.Linear
        The layer whose output is raw, and nothing else.
    source : ScaleMap
        The map that the head was trained with.
    target : ScaleMap
        The map to use from now on.

    Returns
    -------
    nn.Linear
        A new layer; ``head`` is left as it is.

    Raises
    ------
    TypeError
        If ``head`` is not an ``nn.Linear``.
    ValueError
        If no linear rewrite exists.

    Examples
    --------
    >>> import torch
    >>> from pyro_vae.guides import scales
    >>> head = torch.nn.Linear(3, 2)
    >>> logvar, logstd = scales.get("logvar"), scales.get("logstd")
    >>> features = torch.randn(5, 3)
    >>> new = scales.convert(head, logvar, logstd)
    >>> torch.equal(logstd(new(features)), logvar(head(features)))
    True
    """
    if not isinstance(head, nn.Linear):
        raise TypeError(
            f"convert: head must be the nn.Linear whose output is raw; got {type(head).__name__}."
        )
    new = copy.deepcopy(head)
    if source == target:
        return new
    for which, scale_map in (("source", source), ("target", target)):
        if scale_map.log_slope is None:
            raise ValueError(
                f"convert: no linear layer turns raw of {source!r} into raw of {target!r}, because log σ is not "
                f"proportional to raw under the {which}. Keep {source!r}, or train the head again."
            )
    ratio = source.log_slope / target.log_slope  # type: ignore[operator]
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(ratio)
    return new
