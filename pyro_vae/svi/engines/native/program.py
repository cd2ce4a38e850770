"""What the generated function computes in one step: a list of operations on strided views of flat buffers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Buffer:
    """Numbers in a row: an input of the step (``kind`` says which), or an intermediate result
    (``"result"``)."""

    kind: str
    index: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.index}"


@dataclass(frozen=True)
class View:
    """A tensor: a buffer read by strides, or one number everywhere (``source`` is that number then).

    An axis of length 1 has stride 0, so that equal views compare equal.
    """

    source: Buffer | float
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    mask: bool = False
    """Whether it holds truth values (as the numbers 0 and 1)."""

    @staticmethod
    def whole(buffer: Buffer | float, shape: Sequence[int], *, mask: bool = False) -> "View":
        """A buffer in row-major order."""
        return View.like(buffer, torch.empty(tuple(shape), device="meta"), mask=mask)

    @staticmethod
    def number(value: float, shape: Sequence[int], *, mask: bool = False) -> "View":
        return View(float(value), tuple(shape), (0,) * len(shape), 0, mask)

    @staticmethod
    def like(source: Buffer | float, tensor: Tensor, *, mask: bool = False) -> "View":
        """The layout of a tensor, over another source."""
        strides = tuple(
            0 if n == 1 else stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        return View(source, tuple(tensor.shape), strides, int(tensor.storage_offset()), mask)

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def is_contiguous(self) -> bool:
        return self == View.whole(self.source, self.shape, mask=self.mask) if self.is_stored else False

    @property
    def is_stored(self) -> bool:
        return isinstance(self.source, Buffer)

    def as_meta(self) -> Tensor:
        """A tensor without memory in this layout: torch itself works out what a view of it is."""
        reach = 1 + self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return torch.empty(max(reach, 1), device="meta").as_strided(self.shape, self.strides, self.offset)

    def over(self, shape: Sequence[int]) -> "View":
        """Broadcast to a shape."""
        return View.like(self.source, self.as_meta().expand(tuple(shape)), mask=self.mask)

    def only(self, axes: Sequence[int]) -> "View":
        """The first slice along every other axis."""
        shape, strides = tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes)
        return View(self.source, shape, strides, self.offset, self.mask)


@dataclass(frozen=True, eq=False)
class Pointwise:
    """``out[i] = formula(operands[0][i], …)``; a formula is C++ in which ``{0}`` stands for operand 0. All
    views have one shape, and no axis of length 1."""

    formula: str
    operands: tuple[View, ...]
    out: View

    @property
    def reads(self) -> tuple[View, ...]:
        return self.operands


@dataclass(frozen=True, eq=False)
class Sum:
    """``out`` is the sum of ``source`` along one axis."""

    source: View
    axis: int
    out: View

    @property
    def reads(self) -> tuple[View, ...]:
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Product:
    """``out = left @ right + bias``; out is row-major, a bias is a row."""

    left: View
    right: View
    bias: View | None
    out: View

    @property
    def reads(self) -> tuple[View, ...]:
        return (self.left, self.right) if self.bias is None else (self.left, self.right, self.bias)

    @property
    def flops(self) -> int:
        return 2 * self.left.size * self.right.shape[1]


Operation = Pointwise | Sum | Product


@dataclass(frozen=True)
class StepProgram:
    """One step: inputs, operations in an order in which they can run, and outputs."""

    dtype: torch.dtype
    parameters: tuple[Buffer, ...]
    data: tuple[Buffer, ...]
    """A batch, gathered row by row."""
    batch_size: int
    noise: tuple[Buffer, ...]
    """Standard normal or uniform numbers (``kind`` says which), in the order in which the program draws
    them."""
    constants: tuple[str, ...]
    """Attributes of the graph that the step reads where they are, so it sees every change."""
    operations: tuple[Operation, ...]
    terms: tuple[View, View, View]
    """Loss, KL, reconstruction: one number each."""
    gradients: tuple[View, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        return sum(op.flops for op in self.operations if isinstance(op, Product))
