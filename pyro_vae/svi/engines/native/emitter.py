"""Write a :class:`~pyro_vae.svi.engines.native.program.StepProgram` as C++: one function that computes a
step, between the headers that hold the kernels and the loop over steps."""

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

import torch

from pyro_vae.svi.engines.native.call import declaration
from pyro_vae.svi.engines.native.formulas import literal
from pyro_vae.svi.engines.native.program import Buffer, Pointwise, Product, StepProgram, Sum, View
from pyro_vae.svi.engines.native.stages import FusedLoop, Stage, arrange

HEADERS = ("mathematics.hpp", "kernels.hpp")
ALIGNMENT = 16
"""Buffers start at multiples of this number of elements."""


def emit(program: StepProgram) -> str:
    """C++ source with one exported function, ``run``."""
    stages = arrange(program.operations)
    kept = _kept(program, stages)
    layout = _Layout(program, kept)
    here = files("pyro_vae.svi.engines.native")
    parts = [
        "#include <cstdint>",
        f"using T = {'float' if program.dtype == torch.float32 else 'double'};",
        *_constants(program, layout, stages),
        *(here.joinpath(header).read_text(encoding="utf-8") for header in HEADERS),
        declaration(),
        "static void step(const Call& call, int64_t k, Team team) {",
        *(f"  {line}" for line in _pointers(program, layout)),
        *(f"  {line}" for line in _body(stages, kept)),
        *(f"  {line}" for line in _outputs(program)),
        "}",
        here.joinpath("steps.hpp").read_text(encoding="utf-8"),
    ]
    return "\n".join(parts) + "\n"


class _Layout:
    """Where in the arena each buffer lies that the step makes."""

    def __init__(self, program: StepProgram, kept: set[Buffer | float]) -> None:
        self.offsets: dict[Buffer, int] = {}
        self.size = 0
        for buffer in (*program.data, *(op.out.source for op in program.operations if op.out.source in kept)):
            if isinstance(buffer, Buffer) and buffer not in self.offsets:
                self.offsets[buffer] = self.size
                self.size += _aligned(buffer.size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _constants(program: StepProgram, layout: _Layout, stages: Sequence[Stage]) -> list[str]:
    gradients = [view.source for view in program.gradients]
    deepest = max((op.left.shape[1] for op in stages if isinstance(op, Product)), default=0)
    tables = {
        "PARAMETER_SIZES": [b.size for b in program.parameters],
        "GRADIENT_OFFSETS": [layout.offsets[b] for b in gradients if isinstance(b, Buffer)],
        "ROW_SIZES": [b.size // program.batch_size for b in program.data],
        "DATA_OFFSETS": [layout.offsets[b] for b in program.data],
    }
    scalars = {
        "PARAMETERS": len(program.parameters),
        "PARTS": len(program.data),
        "BATCH": program.batch_size,
        "NOISE": sum(b.size for b in program.noise),
        "RESULTS": layout.size,
        "DEEPEST": deepest,
    }
    return [
        *(f"constexpr int64_t {name}[] = {{{', '.join(map(str, row))}}};" for name, row in tables.items()),
        *(f"constexpr int64_t {name} = {value};" for name, value in scalars.items()),
    ]


def _pointers(program: StepProgram, layout: _Layout) -> Iterable[str]:
    for buffer in program.parameters:
        yield f"const T* {buffer.name} = call.parameters[{buffer.index}];"
    for i in range(len(program.constants)):
        yield f"const T* constant_{i} = call.constants[{i}];"
    start = 0
    for buffer in (part for part in program.noise if part.size):
        yield f"const T* {buffer.name} = call.noise + k * NOISE + {start};"
        start += buffer.size
    yield "const T* kl_weight_0 = call.kl_weight + k;"
    for buffer, offset in layout.offsets.items():
        yield f"T* {buffer.name} = call.arena + {offset};"


def _outputs(program: StepProgram) -> Iterable[str]:
    yield "team.wait();"
    names = [view.source.name for view in program.terms if isinstance(view.source, Buffer)]
    yield f"if (team.rank == 0) {{ call.loss[k] = *{names[0]}; call.kl[k] = *{names[1]}; "
    yield f"  call.reconstruction[k] = *{names[2]}; }}"


def _body(stages: Sequence[Stage], kept: set[Buffer | float]) -> Iterable[str]:
    """The stages; between them a barrier where one touches what another thread may have written since the
    last."""
    fresh: set[Buffer | float] = set()
    for stage in stages:
        operations = stage.operations if isinstance(stage, FusedLoop) else [stage]
        touched = {view.source for op in operations for view in (*op.reads, op.out)}
        if touched & fresh:
            yield "team.wait();"
            fresh.clear()
        fresh |= {op.out.source for op in operations}
        if isinstance(stage, FusedLoop):
            yield from _loop(stage, kept)
        elif isinstance(stage, Sum):
            yield _sum(stage)
        else:
            yield _product(stage)


def _kept(program: StepProgram, stages: Sequence[Stage]) -> set[Buffer | float]:
    """The results that go to memory: what an output, another stage, or another layout of it reads."""
    kept = {view.source for view in (*program.terms, *program.gradients)}
    for stage in stages:
        operations = stage.operations if isinstance(stage, FusedLoop) else [stage]
        made = {op.out for op in operations if isinstance(op, Pointwise)}
        kept |= {view.source for op in operations for view in op.reads if view not in made}
        kept |= {op.out.source for op in operations if not isinstance(op, Pointwise)}
    return kept


def _product(op: Product) -> str:
    bias = _at(op.bias) if op.bias else "nullptr"
    rows, depth = op.left.shape
    columns = op.right.shape[1]
    left = f"{_at(op.left)}, {op.left.strides[0]}, {op.left.strides[1]}"
    right = f"{_at(op.right)}, {op.right.strides[0]}, {op.right.strides[1]}"
    return f"product(team, call.packing, {rows}, {columns}, {depth}, {left}, {right}, {bias}, {_at(op.out)});"


def _sum(op: Sum) -> str:
    shape, strides = op.source.shape, op.source.strides
    outer, inner = math.prod(shape[: op.axis]), math.prod(shape[op.axis + 1 :])
    outer_stride = strides[op.axis - 1] if op.axis else 0
    inner_stride = strides[-1] if op.axis + 1 < len(shape) else 0
    return (
        f"sum(team, {_at(op.source)}, {outer}, {outer_stride}, {shape[op.axis]}, {strides[op.axis]}, "
        f"{inner}, {inner_stride}, {_at(op.out)});"
    )


def _at(view: View) -> str:
    assert isinstance(view.source, Buffer)
    return f"{view.source.name} + {view.offset}" if view.offset else view.source.name


def _loop(loop: FusedLoop, kept: set[Buffer | float]) -> Iterable[str]:
    inside = {op.out: f"v{i}" for i, op in enumerate(loop.members)}
    views = [view for op in loop.members for view in (*op.operands, op.out) if view.is_stored]
    index = _Index(loop.shape, flat=not loop.sums, views=views)
    body = []
    for op in loop.members:
        operands = [_element(view, index, inside) for view in op.operands]
        body.append(f"const T {inside[op.out]} = {op.formula.format(*operands)};")
        if op.out.source in kept:
            body.append(f"{index.element(op.out)} = {inside[op.out]};")
    totals = [f"s{i}" for i in range(len(loop.sums))]
    body += [f"{total} += {inside[op.source]};" for total, op in zip(totals, loop.sums, strict=True)]
    ends = [f"{op.out.source.name}[row] = {total};" for total, op in zip(totals, loop.sums, strict=True)]  # type: ignore[union-attr]
    yield from index.around(body, totals, ends)


def _element(view: View, index: "_Index", inside: dict[View, str]) -> str:
    if not isinstance(view.source, Buffer):
        return literal(view.source)
    return inside.get(view) or index.element(view)


class _Index:
    """The loops over a shape: one flat loop, or rows and columns where sums run along the columns."""

    def __init__(self, shape: tuple[int, ...], *, flat: bool, views: Sequence[View]) -> None:
        self.shape, self.flat, self.size = shape, flat, math.prod(shape)
        width = shape[-1] if shape else 1
        if flat and len(shape) > 1 and width >= 64 and any(not _is_linear(view) for view in views):
            self.flat = False
        self.width = width

    def element(self, view: View) -> str:
        """An element in the innermost loop, where ``i`` is the flat index, or ``row`` and ``i`` are."""
        terms = [str(view.offset)] if view.offset else []
        if self.flat and _is_linear(view):
            terms += ["i"] if view.shape else []
        elif self.flat:
            terms += _coordinates(view.shape, view.strides, "i")
        else:
            terms += _coordinates(view.shape[:-1], view.strides[:-1], "row")
            terms += [_times("i", view.strides[-1])] if view.strides[-1] else []
        assert isinstance(view.source, Buffer)
        return f"{view.source.name}[{' + '.join(terms) or '0'}]"

    def around(self, body: Sequence[str], totals: Sequence[str], ends: Sequence[str]) -> Iterable[str]:
        if not self.shape:
            yield from ("if (team.rank == 0) {", *(f"  {line}" for line in body), "}")
        elif self.flat:
            yield f"{{ const Range part = team.share({self.size});"
            yield "#pragma omp simd"
            yield "for (int i = part.begin; i < part.end; ++i) {"
            yield from (*(f"  {line}" for line in body), "} }")
        else:
            yield f"{{ const Range part = team.share({self.size // self.width}, {self.width});"
            yield "for (int row = part.begin; row < part.end; ++row) {"
            if totals:
                yield "  T " + ", ".join(f"{total} = 0" for total in totals) + ";"
            yield "#pragma omp simd" + (f" reduction(+ : {', '.join(totals)})" if totals else "")
            yield f"  for (int i = 0; i < {self.width}; ++i) {{"
            yield from (*(f"    {line}" for line in body), "  }", *(f"  {line}" for line in ends), "} }")


def _is_linear(view: View) -> bool:
    """Whether elements follow each other in memory in the order of the flat index."""
    expected = 1
    for n, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if stride != expected:
            return False
        expected *= n
    return True


def _coordinates(shape: Sequence[int], strides: Sequence[int], index: str) -> list[str]:
    """The terms of an offset, from the flat index over ``shape``."""
    terms, after = [], 1
    for axis in range(len(shape) - 1, -1, -1):
        coordinate = index if after == 1 else f"{index} / {after}"
        if axis > 0:
            coordinate = f"{coordinate} % {shape[axis]}"
        if strides[axis]:
            terms.append(_times(coordinate, strides[axis]))
        after *= shape[axis]
    return terms


def _times(index: str, stride: int) -> str:
    return f"({index}) * {stride}" if stride != 1 else f"({index})"
