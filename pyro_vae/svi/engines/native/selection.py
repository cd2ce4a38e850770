"""Choosing along an axis, as categorical distributions do: the largest, what an index names, softmax."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch

from pyro_vae.svi.engines.native.formulas import literal
from pyro_vae.svi.engines.native.operations import Operations
from pyro_vae.svi.engines.native.program import Buffer, View
from pyro_vae.svi.engines.steps import CannotError

NAMED = "{} == {} ? {} : T(0.0)"
"""A number where an index has the place that is counted to."""


def largest(operations: Operations, view: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    """The largest along an axis, and the first place where it is."""
    axis = dim % len(view.shape)
    parts = [_part(view, axis, k) for k in range(view.shape[axis])]
    shape = parts[0].shape
    top = reduce(lambda a, b: _computed(operations, "maximum({}, {})", (a, b), shape), parts)
    where = View.number(float(len(parts) - 1), shape)
    for k in reversed(range(len(parts) - 1)):
        where = _computed(operations, f"{{}} == {{}} ? {literal(k)} : {{}}", (parts[k], top, where), shape)
    if keepdim:
        return top, where
    return _without(top, axis), _without(where, axis)


def gather(
    operations: Operations, counting: View, view: View, dim: int, index: View, sparse_grad: bool = False
) -> View:
    """One number of each row along an axis; where the index names none, what is not a number. ``counting``
    is 0, 1, 2, … along it."""
    axis = _checked(view, dim, index)
    if sparse_grad:
        raise CannotError("aten.gather.default with sparse_grad=True")
    for other, size in enumerate(index.shape):
        if other != axis:
            view = View.like(view.source, view.as_meta().narrow(other, 0, size), mask=view.mask)
    named = (index.over(view.shape), _along(counting, view, axis), view)
    found = operations.sum(_computed(operations, NAMED, named, view.shape), [axis], True)
    inside = f"{{}} < 0 || {{}} > {literal(view.shape[axis] - 1)} ? not_a_number : {{}}"
    return _computed(operations, inside, (index, index, found), index.shape)


def scatter_add(operations: Operations, counting: View, view: View, dim: int, index: View, src: View) -> View:
    """A number added to one place of each row along an axis."""
    axis = _checked(view, dim, index)
    if any(n != view.shape[d] for d, n in enumerate(index.shape) if d != axis):
        raise CannotError("aten.scatter_add.default of fewer rows than there are")
    source = View.like(src.source, src.as_meta().narrow(axis, 0, 1), mask=src.mask)
    named = (index.over(view.shape), _along(counting, view, axis), source.over(view.shape))
    added = _computed(operations, NAMED, named, view.shape)
    return _computed(operations, "{} + {}", (view, added), view.shape)


def softmax(operations: Operations, view: View, dim: int, half_to_float: bool, *, log: bool) -> View:
    """Shares, or their logarithms, as torch computes them."""
    if half_to_float:
        raise CannotError("softmax of half precision")
    axis = dim % len(view.shape)
    top = largest(operations, view, axis, True)[0].over(view.shape)
    apart = _computed(operations, "{} - {}", (view, top), view.shape)
    each = _computed(operations, "math::exp({})", (apart,), view.shape)
    total = operations.sum(each, [axis], True)
    if log:
        shift = _computed(operations, "math::log({})", (total,), total.shape).over(view.shape)
        return _computed(operations, "{} - {}", (apart, shift), view.shape)
    return _computed(operations, "{} / {}", (each, total.over(view.shape)), view.shape)


def softmax_backward(
    operations: Operations, grad_output: View, output: View, dim: int, input_dtype: Any, *, log: bool
) -> View:
    """The gradient at what went into :func:`softmax`."""
    if input_dtype not in (torch.float32, torch.float64):
        raise CannotError(f"softmax of {input_dtype}")
    axis, shape = dim % len(output.shape), output.shape
    if log:
        total = operations.sum(grad_output, [axis], True).over(shape)
        return _computed(operations, "{} - math::exp({}) * {}", (grad_output, output, total), shape)
    both = _computed(operations, "{} * {}", (grad_output, output), shape)
    total = operations.sum(both, [axis], True).over(shape)
    return _computed(operations, "({} - {}) * {}", (grad_output, total, output), shape)


def _checked(view: View, dim: int, index: View) -> int:
    """The axis, where one place is named of each row."""
    axis = dim % len(view.shape)
    if index.shape[axis] != 1:
        raise CannotError(f"an index of {index.shape[axis]} places in each row")
    return axis


def _along(counting: View, view: View, axis: int) -> View:
    """0, 1, 2, … along an axis of a shape."""
    shape = [n if d == axis else 1 for d, n in enumerate(view.shape)]
    return View.like(counting.source, counting.as_meta().view(shape)).over(view.shape)


def _part(view: View, axis: int, k: int) -> View:
    return View.like(view.source, view.as_meta().narrow(axis, k, 1), mask=view.mask)


def _without(view: View, axis: int) -> View:
    return View.like(view.source, view.as_meta().squeeze(axis), mask=view.mask)


def _computed(operations: Operations, formula: str, operands: Sequence[View], shape: Sequence[int]) -> View:
    """A formula in which braces stand for the operands one by one; those that are numbers are put in."""
    stored = [view for view in operands if view.is_stored]
    slots = iter(range(len(stored)))
    told = [
        f"{{{next(slots)}}}" if isinstance(view.source, Buffer) else literal(float(view.source))
        for view in operands
    ]
    if not stored:
        raise CannotError("a choice among numbers that the graph fixes")
    return operations.pointwise(formula.format(*told), stored, shape)
