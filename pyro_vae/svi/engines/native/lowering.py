"""Lower a captured graph to a :class:`~pyro_vae.svi.engines.native.program.StepProgram`; refuse by name what
is not known, before anything runs."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.graphs.rewriting import CONSTANT
from pyro_vae.svi.engines.native.formulas import FORMULAS, MASKS, fill_in
from pyro_vae.svi.engines.native.inputs import WHOLE_NUMBERS, call_arguments, check_inputs, dtype_of
from pyro_vae.svi.engines.native.normalization import layer_norm, layer_norm_backward
from pyro_vae.svi.engines.native.operations import Operations
from pyro_vae.svi.engines.native.program import Buffer, StepProgram, View
from pyro_vae.svi.engines.native.selection import gather, largest, scatter_add, softmax, softmax_backward
from pyro_vae.svi.engines.steps import CannotError

aten = torch.ops.aten

_VIEWS = (
    aten._unsafe_view.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unsqueeze.default,
    aten.view.default,
)
_IDENTITIES = (
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
_FILLS: dict[Any, str | float] = {  # what with: a number or an argument
    aten.full.default: "fill_value",
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.new_ones.default: 1.0,
    aten.new_zeros.default: 0.0,
    aten.ones.default: 1.0,
    aten.ones_like.default: 1.0,
    aten.scalar_tensor.default: "s",
    aten.zeros.default: 0.0,
    aten.zeros_like.default: 0.0,
}
_MEMORY = (aten.empty.memory_format, aten.empty_like.default)
"""Nothing until something is put there in place, and that is what can be refused by name."""

_OF_MASKS = ("aten.maximum.default", "aten.minimum.default", "aten.mul.Tensor")
"""Formulas that hold for truth values as well."""

_UNCHANGED = frozenset(("{0}", "{0} * T(1.0)", "{0} / T(1.0)", "{0} + T(0.0)", "{0} - T(0.0)"))
"""Formulas that change no number."""


def lower(graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> StepProgram:
    """The operations of ``graph(*parameters, kl_weight, *batch)`` for batches shaped like ``batch``. Raises
    CannotError by name, for an operation, argument, dtype or layout that is not known."""
    return _Lowering(graph, parameters, batch).program()


class _Lowering:
    """The state of one lowering: what each node of the graph became, and the operations so far."""

    def __init__(self, graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> None:
        self.graph, self.parameters, self.batch = graph, parameters, batch
        self.dtype = parameters[0].dtype
        self.operations = Operations()
        self.values: dict[fx.Node, Any] = {}
        self.noise: list[Buffer] = []
        self.constants: dict[str, View] = {}

    def program(self) -> StepProgram:
        check_inputs(self.parameters, self.batch)
        parameters = [Buffer("parameter", i, p.numel()) for i, p in enumerate(self.parameters)]
        data = [Buffer("data", i, x.numel()) for i, x in enumerate(self.batch)]
        inputs = [View.whole(b, p.shape) for b, p in zip(parameters, self.parameters, strict=True)]
        inputs.append(View.whole(Buffer("kl_weight", 0, 1), ()))
        inputs += [
            View.whole(b, x.shape, mask=x.dtype == torch.bool) for b, x in zip(data, self.batch, strict=True)
        ]
        placeholders = iter(inputs)
        outputs: list[View] = []
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(placeholders)
            elif node.op == "get_attr":
                self.values[node] = self._constant(str(node.target))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            else:
                outputs = [self.operations.stored(self.values[output]) for output in node.args[0]]
        return StepProgram(
            self.dtype,
            tuple(parameters),
            tuple(data),
            len(self.batch[0]),
            tuple(self.noise),
            tuple(self.constants),
            tuple(self.operations.needed(outputs)),
            (outputs[0], outputs[1], outputs[2]),
            tuple(outputs[3:]),
        )

    def _constant(self, name: str) -> View:
        if name not in self.constants:
            tensor = getattr(self.graph, name)
            if tensor.dtype in WHOLE_NUMBERS and name.startswith(CONSTANT):
                return self._converted(name, tensor)
            if tensor.dtype != self.dtype or tensor.device.type != "cpu":
                raise CannotError(f"a constant of dtype {tensor.dtype} on device {tensor.device}")
            buffer = Buffer("constant", len(self.constants), tensor.numel())
            # the pointer that is passed is that of the first element
            self.constants[name] = View.like(buffer, tensor.as_strided(tensor.shape, tensor.stride(), 0))
        return self.constants[name]

    def _converted(self, name: str, tensor: Tensor) -> View:
        """A constant of the step's own, whole numbers or truth values, in the step's number type."""
        converted = f"{name}_in_{str(self.dtype).removeprefix('torch.')}"
        setattr(self.graph, converted, tensor.to(self.dtype).contiguous())
        buffer = Buffer("constant", len(self.constants), tensor.numel())
        self.constants[converted] = View.whole(buffer, tensor.shape, mask=tensor.dtype == torch.bool)
        return self.constants[converted]

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        if target is operator.getitem:
            parts, i = node.args
            return self.values[parts][i]  # type: ignore[index]
        if target in _MEMORY:
            return None
        if target is aten.logical_and_.default and _is_last_use(node):
            target = aten.logical_and.default
        arguments = call_arguments(node, target, self.values)
        if str(target) in FORMULAS:
            result = self._pointwise(target, arguments)
            return (result, result) if target is aten.log_sigmoid_forward.default else result
        if target in _VIEWS:
            return self._view(target, arguments.pop("self"), arguments)
        if target in _IDENTITIES:
            return self._identity(target, arguments["self"], arguments.get("dtype"), dtype_of(node.args[0]))
        if target in _FILLS:
            return self._fill(target, arguments)
        rules: dict[Any, Callable[..., Any]] = {
            aten._log_softmax.default: partial(softmax, self.operations, log=True),
            aten._log_softmax_backward_data.default: partial(softmax_backward, self.operations, log=True),
            aten._softmax.default: partial(softmax, self.operations, log=False),
            aten._softmax_backward_data.default: partial(softmax_backward, self.operations, log=False),
            aten.addmm.default: self._product_and_bias,
            aten.cat.default: self.operations.cat,
            aten.gather.default: partial(self._named, gather),
            aten.logsumexp.default: self._logsumexp,
            aten.max.dim: partial(largest, self.operations),
            aten.mean.default: self._mean,
            aten.mean.dim: self._mean,
            aten.mm.default: self.operations.product,
            aten.mv.default: self._product_and_vector,
            aten.native_layer_norm.default: partial(layer_norm, self.operations),
            aten.native_layer_norm_backward.default: partial(layer_norm_backward, self.operations),
            aten.rand.default: self._rand,
            aten.randperm.default: partial(self._randperm, node),
            aten.rand_like.default: self._rand_like,
            aten.randn.default: self._randn,
            aten.scatter_add.default: partial(self._named, scatter_add),
            aten.select_backward.default: self._select_backward,
            aten.slice_backward.default: self._slice_backward,
            aten.stack.default: self._stack,
            aten.sum.default: self._sum,
            aten.sum.dim_IntList: self._sum,
        }
        if target not in rules:
            raise CannotError(str(target))
        for own in ("self", "input"):  # Python's own names for something else
            if own in arguments:
                arguments["view"] = arguments.pop(own)
        return rules[target](**arguments)

    def _pointwise(self, target: Any, arguments: dict[str, Any]) -> View:
        name = str(target)
        formula, operands = fill_in(name, arguments)
        if not operands:
            return _known_now(target, arguments, self.dtype)
        views = {key: value for key, value in arguments.items() if isinstance(value, View)}
        mask = name in MASKS
        if target is aten.where.self:
            mask = views["self"].mask and views["other"].mask
        elif target is aten.masked_fill.Scalar:
            mask = views["self"].mask
        elif not mask and any(view.mask for view in views.values()):
            if name not in _OF_MASKS:
                raise CannotError(f"{name} of truth values")
            mask = all(view.mask for view in views.values())
        shape = torch.broadcast_shapes(*(view.shape for view in views.values()))
        if formula in _UNCHANGED and operands[0].shape == shape:
            return operands[0]
        return self.operations.pointwise(formula, operands, shape, mask=mask)

    def _view(self, target: Any, view: View, arguments: dict[str, Any]) -> View | list[View]:
        try:
            made = target(view.as_meta(), **arguments)
        except RuntimeError:  # no strides can express it: copy first
            view = self.operations.copy(view)
            made = target(view.as_meta(), **arguments)
        if isinstance(made, Tensor):
            return View.like(view.source, made, mask=view.mask)
        return [View.like(view.source, part, mask=view.mask) for part in made]

    def _identity(
        self, target: Any, view: View, dtype: torch.dtype | None, before: torch.dtype | None
    ) -> View:
        if dtype in (None, torch.bool if view.mask else self.dtype, before):
            return view
        if dtype == torch.bool:
            return self.operations.pointwise("T({0} != 0)", (view,), view.shape, mask=True)
        if dtype == torch.int64 and before == self.dtype and view.is_stored:
            return self.operations.pointwise("std::trunc({0})", (view,), view.shape)
        if dtype != self.dtype and not (dtype == torch.int64 and before in WHOLE_NUMBERS):
            raise CannotError(f"{target} to {dtype}")
        return View(view.source, view.shape, view.strides, view.offset)

    def _fill(self, target: Any, arguments: dict[str, Any]) -> View:
        value, source, dtype = _FILLS[target], arguments.get("self"), arguments.get("dtype")
        if dtype not in (None, self.dtype, torch.bool, torch.int64):
            raise CannotError(f"{target} of {dtype}")
        mask = dtype == torch.bool or (dtype is None and isinstance(source, View) and source.mask)
        shape = arguments.get("size", source.shape if isinstance(source, View) else ())
        return View.number(arguments[value] if isinstance(value, str) else value, shape, mask=mask)

    def _named(self, choose: Callable[..., View], view: View, dim: int, **arguments: Any) -> View:
        """What an index chooses, by a constant of the step's own that counts along the axis."""
        count = view.shape[dim % len(view.shape)]
        name = f"count_to_{count}"
        if name not in self.constants:
            setattr(self.graph, name, torch.arange(count, dtype=self.dtype))
        return choose(self.operations, self._constant(name), view, dim, **arguments)

    def _randn(self, size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> View:
        return self._noise("normal", size, dtype)

    def _rand(self, size: Sequence[int], dtype: torch.dtype | None = None, **_: Any) -> View:
        return self._noise("uniform", size, dtype)

    def _rand_like(self, view: View, dtype: torch.dtype | None = None, **_: Any) -> View:
        return self._noise("uniform", view.shape, dtype)

    def _randperm(self, node: fx.Node, n: int, **_: Any) -> None:
        """Which rows a plate would draw, where the program has its own: only the stream moves."""
        if node.users:
            raise CannotError("aten.randperm.default")
        self.noise.append(Buffer("permutation", n, 0))

    def _noise(self, kind: str, size: Sequence[int], dtype: torch.dtype | None) -> View:
        if dtype not in (self.dtype, None):
            raise CannotError(f"{kind} noise of {dtype}")
        self.noise.append(Buffer(kind, len(self.noise), math.prod(size)))
        return View.whole(self.noise[-1], size)

    def _logsumexp(self, view: View, dim: Sequence[int], keepdim: bool = False) -> View:
        rank = len(view.shape)
        for axis in sorted({d % rank for d in dim}, reverse=True):
            parts = [
                View.like(view.source, view.as_meta().narrow(axis, i, 1)) for i in range(view.shape[axis])
            ]
            view = reduce(self._logaddexp, parts)
            if not keepdim:
                view = View.like(view.source, view.as_meta().squeeze(axis))
        return view

    def _logaddexp(self, a: View, b: View) -> View:
        return self.operations.pointwise("logaddexp({0}, {1})", (a, b), a.shape)

    def _product_and_bias(self, view: View, mat1: View, mat2: View, beta: float, alpha: float) -> View:
        if beta != 1 or alpha != 1:
            raise CannotError(f"aten.addmm.default with beta={beta}, alpha={alpha}")
        return self.operations.product(mat1, mat2, view.over((mat1.shape[0], mat2.shape[1])))

    def _product_and_vector(self, view: View, vec: View) -> View:
        column = View.like(vec.source, vec.as_meta().unsqueeze(1))
        product = self.operations.product(view, column)
        return View.like(product.source, product.as_meta().squeeze(1))

    def _sum(
        self, view: View, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None
    ) -> View:
        if view.mask or dtype not in (None, self.dtype):
            raise CannotError("aten.sum of truth values or to another dtype")
        rank = len(view.shape)
        return self.operations.sum(view, sorted({d % rank for d in dim} if dim else range(rank)), keepdim)

    def _mean(
        self, view: View, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None
    ) -> View:
        total = self._sum(view, dim, keepdim, dtype)
        return self.operations.scaled(total, total.size / view.size)

    def _stack(self, tensors: Sequence[View], dim: int) -> View:
        rows = [View.like(v.source, v.as_meta().unsqueeze(dim), mask=v.mask) for v in tensors]
        return self.operations.cat(rows, dim)

    def _slice_backward(self, grad_output: View, input_sizes: Sequence[int], **where: Any) -> View:
        return self.operations.padded(grad_output, input_sizes, lambda x: aten.slice.Tensor(x, **where))

    def _select_backward(self, grad_output: View, input_sizes: Sequence[int], **where: Any) -> View:
        return self.operations.padded(grad_output, input_sizes, lambda x: aten.select.int(x, **where))


def _is_last_use(node: fx.Node) -> bool:
    """Whether nobody else sees the tensor that this node changes in place."""
    changed = node.args[0]
    return isinstance(changed, fx.Node) and str(changed.target) in FORMULAS and len(changed.users) == 1


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
