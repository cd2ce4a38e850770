"""What a graph is given: whether native steps take it, and the arguments of its calls by name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.svi.engines.steps import CannotError

WHOLE_NUMBERS = (torch.bool, torch.uint8, torch.int32, torch.int64)
"""Dtypes of data that are held as floating-point numbers; they must be exact as such."""


def check_inputs(parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> None:
    dtype = parameters[0].dtype
    if dtype not in (torch.float32, torch.float64):
        raise CannotError(f"parameters of dtype {dtype}")
    named = [(f"parameter {i}", p) for i, p in enumerate(parameters)]
    named += [(f"batch[{i}]", x) for i, x in enumerate(batch)]
    for name, tensor in named:
        if tensor.dtype != dtype and not (name.startswith("batch") and tensor.dtype in WHOLE_NUMBERS):
            raise CannotError(f"{name} of dtype {tensor.dtype} beside parameters of dtype {dtype}")
        if tensor.device.type != "cpu":
            raise CannotError(f"{name} on device {tensor.device}")
        if not tensor.is_contiguous():
            raise CannotError(f"{name}, which is not contiguous")
    if len({len(x) if x.dim() else 0 for x in batch}) != 1 or not batch[0].numel():
        raise CannotError("a batch without rows, or whose parts differ in length")


def dtype_of(argument: Any) -> torch.dtype | None:
    """Of a node's result, if it is known."""
    like = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return getattr(like, "dtype", None)


def call_arguments(node: fx.Node, target: Any, values: dict[fx.Node, Any]) -> dict[str, Any]:
    """The arguments of an aten call by name, defaults included."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        raise CannotError(str(target))
    if schema.is_mutable:
        raise CannotError(f"{target}, which changes a tensor in place")
    positional, by_name = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named.update(zip((a.name for a in schema.arguments), positional, strict=False))
    return {**named, **by_name}
