"""From a captured graph to a :class:`~pyro_vae.svi.native.program.Program`; what is not known is refused by
name before anything runs."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.svi.native.formulas import FORMULAS, IGNORED, MASKS, REQUIRED, power
from pyro_vae.svi.native.program import Buffer, Operation, Pointwise, Product, Program, Sum, View

__all__ = ["Unsupported", "lower"]


class Unsupported(Exception):
    """The native engine cannot express this graph; the message names what it does not know."""


_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "_unsafe_view.default expand.default permute.default select.int slice.Tensor split.Tensor "
        "split_with_sizes.default squeeze.default squeeze.dim squeeze.dims t.default transpose.int "
        "unsqueeze.default view.default"
    ).split()
)
_IDENTITIES = frozenset(
    f"aten.{name}.default" for name in ("alias", "clone", "detach", "lift_fresh_copy", "_to_copy", "contiguous")
)
_NOTHING = frozenset(("{0}", "{0} * T(1.0)", "{0} / T(1.0)", "{0} + T(0.0)", "{0} - T(0.0)"))
"""Formulas that change no number."""
_FILLS = {"zeros": 0.0, "ones": 1.0, "full": None, "scalar_tensor": None}


def lower(graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> Program:
    """The operations of ``graph(*parameters, kl_weight, *batch)``, each distinct one once, for batches shaped
    like ``batch``.

    Raises
    ------
    Unsupported
        By name, for an operation, argument, dtype or layout that is not known.
    """
    return _Lowering(graph, parameters, batch).program()


class _Lowering:
    """The state of one lowering: what each node of the graph became, and the operations so far."""

    def __init__(self, graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> None:
        self.graph, self.parameters, self.batch = graph, parameters, batch
        self.dtype = parameters[0].dtype
        self.values: dict[fx.Node, Any] = {}
        self.noise: list[Buffer] = []
        self.constants: dict[str, View] = {}
        self.operations: list[Operation] = []
        self.known: dict[Any, View] = {}
        self.results = 0

    def program(self) -> Program:
        self._check_inputs()
        placeholders = iter(self._input_views())
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(placeholders)
            elif node.op == "get_attr":
                self.values[node] = self._constant(str(node.target))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        output = next(node for node in reversed(self.graph.graph.nodes) if node.op == "output")
        loss, kl, reconstruction, *gradients = (self._stored(self.values[node]) for node in output.args[0])
        return Program(
            self.dtype,
            tuple(Buffer("parameter", i, p.numel()) for i, p in enumerate(self.parameters)),
            tuple(Buffer("data", i, x.numel()) for i, x in enumerate(self.batch)),
            len(self.batch[0]),
            tuple(self.noise),
            tuple(self.constants),
            tuple(self._needed([loss, kl, reconstruction, *gradients])),
            (loss, kl, reconstruction),
            tuple(gradients),
        )

    def _check_inputs(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise Unsupported(f"parameters of dtype {self.dtype}")
        named = [(f"parameter {i}", p) for i, p in enumerate(self.parameters)]
        named += [(f"batch[{i}]", x) for i, x in enumerate(self.batch)]
        for name, tensor in named:
            if tensor.dtype != self.dtype:
                raise Unsupported(f"{name} of dtype {tensor.dtype} beside parameters of dtype {self.dtype}")
            if tensor.device.type != "cpu":
                raise Unsupported(f"{name} on device {tensor.device}")
            if not tensor.is_contiguous():
                raise Unsupported(f"{name}, which is not contiguous")
        if len({len(x) for x in self.batch}) != 1:
            raise Unsupported("a batch without rows, or whose parts differ in length")

    def _input_views(self) -> list[View]:
        views = [View.whole(Buffer("parameter", i, p.numel()), p.shape) for i, p in enumerate(self.parameters)]
        views.append(View.whole(Buffer("kl_weight", 0, 1), ()))
        return views + [View.whole(Buffer("data", i, x.numel()), x.shape) for i, x in enumerate(self.batch)]

    def _constant(self, name: str) -> View:
        if name not in self.constants:
            tensor = getattr(self.graph, name)
            if tensor.dtype != self.dtype or tensor.device.type != "cpu":
                raise Unsupported(f"a constant of dtype {tensor.dtype} on device {tensor.device}")
            buffer = Buffer("constant", len(self.constants), tensor.numel())
            # the pointer that is passed is that of the first element
            self.constants[name] = View.like(buffer, tensor.as_strided(tensor.shape, tensor.stride(), 0))
        return self.constants[name]

    def _call(self, node: fx.Node) -> Any:
        name = str(node.target)
        if "getitem" in name:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        arguments = _arguments(node, lambda n: self.values[n])
        word = name.split(".")[1] if name.count(".") == 2 else name
        if name in _VIEWS:
            return self._view(node, arguments)
        if name in _IDENTITIES:
            return self._identity(name, arguments)
        if name in FORMULAS:
            result = self._pointwise(node.target, arguments)
            return (result, result) if name == "aten.log_sigmoid_forward.default" else result
        if re.sub("^new_|_like$", "", word) in _FILLS:
            return self._fill(name, word, arguments)
        special: dict[str, Callable[[dict[str, Any]], View]] = {
            "aten.mm.default": lambda a: self._product(a["self"], a["mat2"], None),
            "aten.addmm.default": self._product_and_bias,
            "aten.sum.default": lambda a: self._sum(a["self"], None, keep=False, dtype=a["dtype"]),
            "aten.sum.dim_IntList": lambda a: self._sum(a["self"], a["dim"], keep=a["keepdim"], dtype=a["dtype"]),
            "aten.mean.default": lambda a: self._mean(a["self"], None, keep=False, dtype=a["dtype"]),
            "aten.mean.dim": lambda a: self._mean(a["self"], a["dim"], keep=a["keepdim"], dtype=a["dtype"]),
            "aten.cat.default": lambda a: self._cat(a["tensors"], a["dim"]),
            "aten.stack.default": self._stack,
            "aten.slice_backward.default": lambda a: self._scatter(torch.ops.aten.slice.Tensor, a),
            "aten.select_backward.default": lambda a: self._scatter(torch.ops.aten.select.int, a),
            "aten.randn.default": self._randn,
        }
        if name not in special:
            raise Unsupported(name)
        return special[name](arguments)

    # Views

    def _view(self, node: fx.Node, arguments: dict[str, Any]) -> Any:
        view: View = arguments.pop("self")
        target: Any = node.target
        try:
            made = target(view.as_meta(), **arguments)
        except RuntimeError:  # no strides can express it: copy first
            view = self._copy(view)
            made = target(view.as_meta(), **arguments)
        if isinstance(made, Tensor):
            return View.like(view.source, made, mask=view.mask)
        return [View.like(view.source, part, mask=view.mask) for part in made]

    def _identity(self, name: str, arguments: dict[str, Any]) -> View:
        view: View = arguments["self"]
        dtype = arguments.get("dtype")
        if dtype is not None and dtype != (torch.bool if view.mask else self.dtype):
            if not (view.mask and dtype == self.dtype):
                raise Unsupported(f"{name} to {dtype}")
            return View(view.source, view.shape, view.strides, view.offset)
        return view

    def _fill(self, name: str, word: str, arguments: dict[str, Any]) -> View:
        value = _FILLS[re.sub("^new_|_like$", "", word)]
        if value is None:
            value = arguments.get("fill_value", arguments.get("s"))
        dtype = arguments.get("dtype")
        if dtype not in (None, self.dtype, torch.bool):
            raise Unsupported(f"{name} of {dtype}")
        source = arguments.get("self")
        mask = dtype == torch.bool or (dtype is None and isinstance(source, View) and source.mask)
        shape = source.shape if word.endswith("_like") else arguments.get("size", ())  # type: ignore[union-attr]
        return View.number(float(value), shape, mask=mask)

    def _randn(self, arguments: dict[str, Any]) -> View:
        if arguments["dtype"] not in (self.dtype, None):
            raise Unsupported(f"aten.randn.default of {arguments['dtype']}")
        shape = tuple(arguments["size"])
        self.noise.append(Buffer("noise", len(self.noise), math.prod(shape)))
        return View.whole(self.noise[-1], shape)

    # Operations

    def _new(self, shape: Sequence[int], *, mask: bool = False) -> View:
        self.results += 1
        return View.whole(Buffer("result", self.results - 1, math.prod(shape)), shape, mask=mask)

    def _once(self, key: Any, make: Callable[[], View]) -> View:
        """Equal operations on equal operands are one operation."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def _pointwise(self, target: Any, arguments: dict[str, Any]) -> View:
        name = str(target)
        formula, operands = _fill_in(name, arguments)
        if not operands:
            return _known_now(target, arguments, self.dtype)
        mask = name in MASKS
        if name == "aten.where.self":
            mask = arguments["self"].mask and arguments["other"].mask
        elif any(isinstance(v, View) and v.mask for v in arguments.values()) and not mask and not name.startswith("aten.mul"):
            raise Unsupported(f"{name} of truth values")
        shape = torch.broadcast_shapes(*(v.shape for v in arguments.values() if isinstance(v, View)))
        if formula in _NOTHING and operands[0].shape == shape:
            return operands[0]
        return self._apply(formula, operands, shape, mask=mask)

    def _apply(
        self, formula: str, operands: Sequence[View], shape: Sequence[int], *, mask: bool = False
    ) -> View:
        """Computed where operands differ: along an axis on which every operand is broadcast, once."""
        full = [view.over(shape) for view in operands]
        varying = [axis for axis in range(len(shape)) if any(view.strides[axis] for view in full)]
        small = tuple(view.only(varying) for view in full)

        def compute() -> View:
            out = self._new([shape[axis] for axis in varying], mask=mask)
            self.operations.append(Pointwise(formula, small, out))
            return out

        out = self._once((formula, small, mask), compute)
        strides = [0] * len(shape)
        for axis, stride in zip(varying, out.strides, strict=True):
            strides[axis] = stride
        return View(out.source, tuple(shape), tuple(strides), out.offset, mask)

    def _copy(self, view: View, out: View | None = None) -> View:
        """In row-major order, or into ``out``."""
        out = self._new(view.shape, mask=view.mask) if out is None else out
        axes = [axis for axis, n in enumerate(out.shape) if n > 1]
        self.operations.append(Pointwise("{0}", (view.only(axes),), out.only(axes)))
        return out

    def _stored(self, view: View) -> View:
        """A result of this step in row-major order: what an output must be."""
        computed = isinstance(view.source, Buffer) and view.source.kind == "result"
        return view if computed and view.is_contiguous else self._copy(view)

    def _product_and_bias(self, arguments: dict[str, Any]) -> View:
        if arguments["beta"] != 1 or arguments["alpha"] != 1:
            raise Unsupported("aten.addmm.default with beta or alpha")
        left, right = arguments["mat1"], arguments["mat2"]
        bias = arguments["self"].over((left.shape[0], right.shape[1]))
        if bias.is_stored and bias.strides[0] == 0 and bias.strides[1] == 1:
            return self._product(left, right, bias)
        return self._apply("{0} + {1}", (self._product(left, right, None), bias), bias.shape)

    def _product(self, left: View, right: View, bias: View | None) -> View:
        left, right = (view if view.is_stored else self._copy(view) for view in (left, right))
        if left.mask or right.mask:
            raise Unsupported("aten.mm.default of truth values")

        def compute() -> View:
            out = self._new((left.shape[0], right.shape[1]))
            self.operations.append(Product(left, right, bias, out))
            return out

        return self._once((left, right, bias), compute)

    def _sum(self, view: View, dims: Sequence[int] | None, *, keep: bool, dtype: Any) -> View:
        if view.mask or dtype not in (None, self.dtype):
            raise Unsupported("aten.sum of truth values or to another dtype")
        rank = len(view.shape)
        reduced = {d % rank for d in dims} if dims else set(range(rank))
        for axis in sorted(reduced, reverse=True):
            view = self._sum_along(view, axis)
        return view if keep else View.like(view.source, view.as_meta().squeeze(tuple(reduced)))

    def _sum_along(self, view: View, axis: int) -> View:
        """Sum one axis, which stays with length 1."""
        if view.shape[axis] == 1:
            return view
        shape = [1 if d == axis else n for d, n in enumerate(view.shape)]
        if not view.is_stored:
            return View.number(view.source * view.shape[axis], shape)  # type: ignore[operator]
        if not view.strides[axis]:
            single = View.like(view.source, view.as_meta().narrow(axis, 0, 1))
            return self._apply(f"{{0}} * {literal(view.shape[axis])}", (single,), shape)
        source = self._at_most_three_axes(view, axis)
        axes = [d for d, n in enumerate(source.shape) if n > 1]

        def compute() -> View:
            out = self._new([source.shape[d] for d in axes if d != axis])
            self.operations.append(Sum(source.only(axes), axes.index(axis), out))
            return out

        return View.whole(self._once(("sum", source, axis), compute).source, shape)

    def _at_most_three_axes(self, view: View, axis: int) -> View:
        """The layout that the kernels of sums take: at most one axis on either side, or row-major order."""
        def long(lengths: Sequence[int]) -> int:
            return sum(n > 1 for n in lengths)

        if long(view.shape[:axis]) <= 1 and long(view.shape[axis + 1 :]) <= 1:
            return view
        return view if view.is_contiguous else self._copy(view)

    def _mean(self, view: View, dims: Sequence[int] | None, *, keep: bool, dtype: Any) -> View:
        total = self._sum(view, dims, keep=keep, dtype=dtype)
        count = view.size // total.size
        if not total.is_stored:
            return View.number(total.source / count, total.shape)  # type: ignore[operator]
        return self._apply(f"{{0}} / {literal(count)}", (total,), total.shape)

    def _cat(self, views: Sequence[View], dim: int) -> View:
        if len(views) == 1:
            return views[0]
        shape = list(views[0].shape)
        shape[dim] = sum(view.shape[dim] for view in views)
        out, start = self._new(shape, mask=views[0].mask), 0
        for view in views:
            part = out.as_meta().narrow(dim, start, view.shape[dim])
            self._copy(view, View.like(out.source, part, mask=view.mask))
            start += view.shape[dim]
        return out

    def _stack(self, arguments: dict[str, Any]) -> View:
        dim = arguments["dim"]
        rows = [View.like(v.source, v.as_meta().unsqueeze(dim), mask=v.mask) for v in arguments["tensors"]]
        return self._cat(rows, dim)

    def _scatter(self, take: Callable[..., Tensor], arguments: dict[str, Any]) -> View:
        """The backward of a slice: zeros, but for the slice."""
        gradient, shape = arguments.pop("grad_output"), arguments.pop("input_sizes")
        out = self._new(shape)
        self._copy(View.number(0.0, shape), out)
        self._copy(gradient, View.like(out.source, take(out.as_meta(), **arguments)))
        return out

    def _needed(self, outputs: Sequence[View]) -> list[Operation]:
        """The operations on which the outputs depend."""
        wanted = {view.source for view in outputs}
        kept: list[Operation] = []
        for operation in reversed(self.operations):
            if operation.out.source in wanted:
                wanted.update(view.source for view in operation.reads)
                kept.append(operation)
        return kept[::-1]


def _arguments(node: fx.Node, value: Callable[[fx.Node], Any]) -> dict[str, Any]:
    """The arguments of an aten call by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise Unsupported(str(node.target))
    if schema.is_mutable:
        raise Unsupported(f"{node.target}, which changes a tensor in place")
    given = fx.map_arg((node.args, node.kwargs), value)
    named = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    named.update(zip((argument.name for argument in schema.arguments), given[0], strict=False))
    return {**named, **given[1]}


def _fill_in(name: str, arguments: dict[str, Any]) -> tuple[str, list[View]]:
    """A formula of numbered operands with the numbers put in."""
    formula = FORMULAS[name]
    named = set(re.findall(r"\{(\w+)\}", formula))
    if name == "aten.pow.Tensor_Scalar":
        formula, named = power(arguments["exponent"]).replace("{0}", "{self}"), {"self", "exponent"}
    defaults = _defaults(name)
    operands: list[View] = []
    slots: dict[str, str] = {}
    for key, value in arguments.items():
        if key in named:
            if isinstance(value, View) and value.is_stored:
                slots[key] = f"{{{len(operands)}}}"
                operands.append(value)
            else:
                slots[key] = _number(name, key, value.source if isinstance(value, View) else value)
        elif IGNORED.get(name) != key:
            required = REQUIRED.get(name, {}).get(key, defaults.get(key))
            if value != required:
                raise Unsupported(f"{name} with {key}={value}")
    if slots.get("alpha") == "T(1.0)":
        formula = formula.replace("{alpha} * ", "")
    return formula.format(**slots), operands


def _known_now(target: Any, arguments: dict[str, Any], dtype: torch.dtype) -> View:
    """An operation on numbers that the graph fixes: done here, by torch."""
    tensors = {
        key: torch.tensor(value.source, dtype=torch.bool if value.mask else dtype).expand(value.shape)
        if isinstance(value, View)
        else value
        for key, value in arguments.items()
    }
    result = target(**tensors)
    result = result[0] if isinstance(result, tuple) else result
    return View.number(float(result.flatten()[0]), result.shape, mask=result.dtype == torch.bool)


def _defaults(name: str) -> dict[str, Any]:
    _, word, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, word), overload)._schema
    return {a.name: a.default_value for a in schema.arguments if a.has_default_value()}


def _number(name: str, key: str, value: Any) -> str:
    """A number as C++."""
    if value is None and name == "aten.clamp.default":
        return "-infinity" if key == "min" else "infinity"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        raise Unsupported(f"{name} with {key}={value}")
    return literal(float(value))


def literal(value: float) -> str:
    """A number as C++, in the type of the step."""
    if math.isnan(value):
        return "not_a_number"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    return f"T({float(value)!r})"
