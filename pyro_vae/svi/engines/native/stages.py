"""Put operations in order, and let some of them share a loop."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_vae.svi.engines.native.program import Buffer, Operation, Pointwise, Product, Sum, View

WIDE = 64
"""A sum along fewer elements is not worth a loop of two levels: it runs on its own, after a flat loop."""


@dataclass
class FusedLoop:
    """Pointwise operations of one shape in one loop, and sums along its last axis. What is needed only inside
    the loop stays in registers."""

    shape: tuple[int, ...]
    members: list[Pointwise] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)

    @property
    def operations(self) -> list[Pointwise | Sum]:
        return [*self.members, *self.sums]


Stage = FusedLoop | Sum | Product


def arrange(operations: Sequence[Operation]) -> list[Stage]:
    """Products and sums as soon as they can run; otherwise the smallest loop that can, so that by the time
    the large ones start as much as possible is there to share them."""
    unfinished = Counter(op.out.source for op in operations)
    pending, stages = list(operations), []
    while pending:
        stage = _next(pending, unfinished)
        stages.append(stage)
        for done in stage.operations if isinstance(stage, FusedLoop) else [stage]:
            pending.remove(done)
            unfinished[done.out.source] -= 1
    return stages


def _next(pending: list[Operation], unfinished: Counter[Buffer | float]) -> Stage:
    ready: list[Operation] = []
    written: set[Buffer | float] = set()
    for op in pending:
        if op.out.source not in written and not any(unfinished[view.source] for view in op.reads):
            ready.append(op)
        written.add(op.out.source)  # parts of one buffer are written in order
    for op in ready:
        if not isinstance(op, Pointwise):
            return op
    smallest = min((op for op in ready if isinstance(op, Pointwise)), key=lambda op: op.out.size)
    return _loop(smallest.out.shape, pending, unfinished)


def _loop(shape: tuple[int, ...], pending: list[Operation], unfinished: Counter[Buffer | float]) -> FusedLoop:
    loop = FusedLoop(shape)
    inside: dict[Buffer | float, View] = {}
    late: set[Buffer | float] = set()

    def readable(view: View) -> bool:
        return not unfinished[view.source] or inside.get(view.source) == view

    for op in pending:
        joins = all(readable(view) for view in op.reads) and op.out.source not in late
        if joins and isinstance(op, Pointwise) and op.out.shape == shape:
            loop.members.append(op)
            if unfinished[op.out.source] == 1:
                inside[op.out.source] = op.out
                continue
        elif isinstance(op, Sum) and inside.get(op.source.source) == op.source and _along_rows(op):
            loop.sums.append(op)
        late.add(op.out.source)  # what writes there next must wait for this one
    return loop


def _along_rows(op: Sum) -> bool:
    return (
        len(op.source.shape) > 1 and op.axis == len(op.source.shape) - 1 and op.source.shape[op.axis] >= WIDE
    )
