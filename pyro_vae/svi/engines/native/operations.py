"""Collect the operations of a step, each distinct one once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.svi.engines.native.formulas import literal
from pyro_vae.svi.engines.native.program import Buffer, Operation, Pointwise, Product, Sum, View
from pyro_vae.svi.engines.steps import CannotError


class Operations:
    """A list of operations that grows by methods, each of which returns the view of its result."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []
        self._known: dict[Any, View] = {}
        self._results = 0

    def pointwise(
        self, formula: str, operands: Sequence[View], shape: Sequence[int], *, mask: bool = False
    ) -> View:
        """Computed where operands differ: along an axis on which every operand is broadcast, once."""
        full = [view.over(shape) for view in operands]
        varying = [axis for axis in range(len(shape)) if any(view.strides[axis] for view in full)]
        small = tuple(view.only(varying) for view in full)

        def compute() -> View:
            out = self._new([shape[axis] for axis in varying], mask=mask)
            self._operations.append(Pointwise(formula, small, out))
            return out

        out = self._once((formula, small, mask), compute)
        strides = [0] * len(shape)
        for axis, stride in zip(varying, out.strides, strict=True):
            strides[axis] = stride
        return View(out.source, tuple(shape), tuple(strides), out.offset, mask)

    def scaled(self, view: View, factor: float) -> View:
        if isinstance(view.source, float):
            return View.number(view.source * factor, view.shape)
        return self.pointwise(f"{{0}} * {literal(factor)}", (view,), view.shape)

    def copy(self, view: View, out: View | None = None) -> View:
        """In row-major order, or into ``out``."""
        out = self._new(view.shape, mask=view.mask) if out is None else out
        axes = [axis for axis, n in enumerate(out.shape) if n > 1]
        self._operations.append(Pointwise("{0}", (view.only(axes),), out.only(axes)))
        return out

    def stored(self, view: View) -> View:
        """A result of this step in row-major order: what an output must be."""
        computed = isinstance(view.source, Buffer) and view.source.kind == "result"
        return view if computed and view.is_contiguous else self.copy(view)

    def product(self, view: View, mat2: View, bias: View | None = None) -> View:
        """``view @ mat2 + bias``."""
        if view.mask or mat2.mask:
            raise CannotError("aten.mm.default of truth values")
        if bias is not None and bias.strides != (0, 1):  # only a row can start the sums
            return self.pointwise("{0} + {1}", (self.product(view, mat2), bias), bias.shape)
        left, right = (v if v.is_stored else self.copy(v) for v in (view, mat2))

        def compute() -> View:
            out = self._new((left.shape[0], right.shape[1]))
            self._operations.append(Product(left, right, bias, out))
            return out

        return self._once((left, right, bias), compute)

    def sum(self, view: View, axes: Sequence[int], keep: bool) -> View:
        for axis in reversed(axes):
            view = self._sum_along(view, axis)
        return view if keep else View.like(view.source, view.as_meta().squeeze(tuple(axes)))

    def _sum_along(self, view: View, axis: int) -> View:
        """The sum along one axis, which stays with length 1."""
        if view.shape[axis] == 1:
            return view
        if not view.strides[axis]:
            single = View.like(view.source, view.as_meta().narrow(axis, 0, 1))
            return self.scaled(single, view.shape[axis])
        if not view.is_contiguous and not _has_few_axes(view, axis):
            view = self.copy(view)
        axes = [d for d, n in enumerate(view.shape) if n > 1]

        def compute() -> View:
            out = self._new([view.shape[d] for d in axes if d != axis])
            self._operations.append(Sum(view.only(axes), axes.index(axis), out))
            return View.whole(out.source, [1 if d == axis else n for d, n in enumerate(view.shape)])

        return self._once(("sum", view, axis), compute)

    def cat(self, tensors: Sequence[View], dim: int) -> View:
        if len(tensors) == 1:
            return tensors[0]
        shape = list(tensors[0].shape)
        shape[dim] = sum(view.shape[dim] for view in tensors)
        out, start = self._new(shape, mask=tensors[0].mask), 0
        for view in tensors:
            part = out.as_meta().narrow(dim, start, view.shape[dim])
            self.copy(view, View.like(out.source, part, mask=view.mask))
            start += view.shape[dim]
        return out

    def padded(self, part: View, shape: Sequence[int], take: Callable[[Tensor], Tensor]) -> View:
        """Zeros, but for the part that ``take`` takes."""
        out = self._new(shape)
        self.copy(View.number(0.0, shape), out)
        self.copy(part, View.like(out.source, take(out.as_meta())))
        return out

    def needed(self, outputs: Sequence[View]) -> list[Operation]:
        """The operations on which the outputs depend."""
        wanted = {view.source for view in outputs}
        kept: list[Operation] = []
        for operation in reversed(self._operations):
            if operation.out.source in wanted:
                wanted.update(view.source for view in operation.reads)
                kept.append(operation)
        return kept[::-1]

    def _new(self, shape: Sequence[int], *, mask: bool = False) -> View:
        self._results += 1
        return View.whole(Buffer("result", self._results - 1, math.prod(shape)), shape, mask=mask)

    def _once(self, key: Any, make: Callable[[], View]) -> View:
        """Equal operations on equal operands are one operation."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _has_few_axes(view: View, axis: int) -> bool:
    """Whether at most one axis lies on either side, which is what the kernel takes of other layouts than
    row-major order."""
    sides = (view.shape[:axis], view.shape[axis + 1 :])
    return all(sum(n > 1 for n in side) <= 1 for side in sides)
