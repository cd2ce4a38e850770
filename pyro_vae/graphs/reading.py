"""What a program reads off its tensors while it is traced.

A graph has no place for a number that Python took from a tensor, nor for a shape that depends on values: it
would keep those of the first batch for ever. Whoever traces therefore watches the program: what only asks
("are these arguments valid?") is answered, and what takes a number is refused with the line that does.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
)
from torch.overrides import TorchFunctionMode

from pyro_vae.graphs.places import calling_line, filename_of
from pyro_vae.graphs.selecting import Selection, Selections, indices_of, selected_by_scalar

Answer = Callable[..., Any]
"""``answer(frame, *args, **kwargs)`` in place of a function of torch that is called from ``frame``;
NotImplemented where it has none."""

_OUT_OF_TORCH = (
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__complex__,
    Tensor.__index__,
)
_SIZES = (
    Tensor.__len__,
    Tensor.size,
    Tensor.numel,
    Tensor.nelement,
    vars(torch._C.TensorBase)["shape"].__get__,
)
_ASSERTING = ("/pyro/distributions/transforms/", "/torch/distributions/constraints.py")
_SHAPES_FROM_VALUES = ("nonzero", "masked_select", "unique", "unique_consecutive", "argwhere")


class DependsOnValuesError(Exception):
    """A program takes a number or a shape from the values of a tensor that differs between steps."""

    def __init__(self, what: str, line: str | None) -> None:
        super().__init__(f"{what} ({line})" if line else what)
        self.line = line


class Watch(TorchFunctionMode):
    """Watches a function while it is traced. Subclasses add to :attr:`answers`.

    Attributes
    ----------
    validity
        The truth values that distributions asked for when they checked arguments and samples, all of which
        were taken to hold.
    numbers
        Tensors that numbers were taken from though they belong to no input: they are frozen at these values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[Any, Answer] = {
            torch._is_all_true: self._assume_valid,
            torch._C._nn.one_hot: self._one_hot,
            torch.repeat_interleave: _fixed_repeats,
            **dict.fromkeys(_OUT_OF_TORCH, self.answer_with_number),
            Tensor.__bool__: self.answer_with_truth,
            Tensor.__getitem__: self._select,
            Tensor.__setitem__: self._assign,
            Tensor.unbind: self._unbind,
            **dict.fromkeys(_SIZES, self._size),
        }
        self._selections = Selections()
        self.validity: list[Tensor] = []
        self.numbers: list[Tensor] = []
        self.lines: list[str] = []
        """Where shapes may depend on values, in the order of the program."""
        self.harmless: list[fx.Node] = []
        """What was selected only to be assigned by the same mask."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        answer = self.answers.get(func)
        if answer is not None:
            given = answer(sys._getframe(1), *args, **kwargs)
            if given is not NotImplemented:
                return given
        elif getattr(func, "__name__", "") in _SHAPES_FROM_VALUES:
            self.lines.append(calling_line() or "")
        return func(*args, **kwargs)

    def take_number(self, tensor: Tensor) -> None:
        """Note that a number is taken from a tensor; refuse if that may differ between steps."""
        if is_traced(tensor):
            raise DependsOnValuesError("it takes a number from a tensor that changes", calling_line())
        self.numbers.append(tensor)

    def answer_with_number(self, frame: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        del frame, args, kwargs
        self.take_number(tensor)
        return NotImplemented

    def answer_with_truth(self, frame: Any, tensor: Tensor) -> Any:
        """Pyro's transforms and torch's constraints assert what holds of valid parameters."""
        if is_traced(tensor) and any(place in filename_of(frame) for place in _ASSERTING):
            self.validity.append(tensor)
            return True
        return self.answer_with_number(frame, tensor)

    def _select(self, frame: Any, source: Tensor, index: Any) -> Any:
        del frame
        if not _selects_by_values(index):
            selected = selected_by_scalar(source, index) if _is_traced_index(index) else None
            return NotImplemented if selected is None else selected
        line = calling_line() or ""
        self.lines.append(line)
        result = source[index]
        if isinstance(index, Tensor) and index.dtype == torch.bool and is_traced(index):
            self._selections.note(Selection(result, source, index, line, node_of(result)))
        return result

    def _size(self, frame: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        del frame, args, kwargs
        selection = self._selections.of(tensor)
        if selection is None:
            return NotImplemented
        raise DependsOnValuesError("the size of a tensor depends on values", selection.line)

    def _assign(self, frame: Any, target: Tensor, index: Any, value: Any) -> Any:
        del frame
        known = self._selections.assign(target, index, value) if isinstance(index, Tensor) else None
        if known is None:
            return NotImplemented
        self.lines.remove(known.line)
        self.harmless.append(known.node)
        return None

    def _unbind(self, frame: Any, tensor: Tensor, dim: int = 0) -> Any:
        """``for i in permutation``: numbers that belong to no input, to index by."""
        del frame
        if tensor.dim() != 1 or dim or is_traced(tensor) or tensor.dtype != torch.int64:
            return NotImplemented
        self.take_number(tensor)
        with disable_proxy_modes_tracing():
            return tuple(tensor.clone().unbind())

    def _one_hot(self, frame: Any, indices: Tensor, num_classes: int = -1) -> Any:
        """``F.one_hot`` looks at the values on the host, though their shape says it all where the number of
        classes is given."""
        del frame
        if num_classes <= 0 or not is_traced(indices):
            return NotImplemented
        self.validity.append((indices >= 0) & (indices < num_classes))
        classes = torch.arange(num_classes, device=indices.device)
        return (indices.unsqueeze(-1) == classes).to(torch.int64)

    def _assume_valid(self, frame: Any, valid: Tensor) -> Any:
        constraint = frame.f_locals.get("constraint", frame.f_locals.get("support"))
        if not _is_real(constraint):
            self.validity.append(valid)
        return True


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor is the result of an operation in the graph that is being traced, or its input."""
    mode = get_proxy_mode()
    if mode is None:
        return False
    slot: Any = get_proxy_slot(tensor, mode.tracer, None)
    return slot is not None and getattr(slot, "constant", None) is None


def node_of(tensor: Tensor) -> fx.Node:
    """The node of the graph that is being traced whose result a tensor is."""
    mode = get_proxy_mode()
    assert mode is not None
    slot: Any = get_proxy_slot(tensor, mode.tracer)
    node: fx.Node = slot.proxy.node
    return node


def check_shapes(graph: fx.GraphModule, lines: list[str], harmless: Sequence[fx.Node] = ()) -> list[Tensor]:
    """The tensors whose values fixed shapes in a graph that was just traced; none of them may depend on an
    input or a draw. Raises DependsOnValuesError with the line of the program, where one does."""
    from_inputs: set[fx.Node] = set()
    unseen = {node.name for node in harmless}
    fixed: list[Tensor] = []
    for node in graph.graph.nodes:
        changing = node.op == "placeholder" or _draws(node)
        if changing or any(argument in from_inputs for argument in node.all_input_nodes):
            from_inputs.add(node)
        if not _has_shape_from_values(node) or (node.name in unseen and not node.users):
            continue
        line = lines.pop(0) if lines else None
        if any(argument in from_inputs for argument in _deciding(node)):
            raise DependsOnValuesError("the size of a tensor depends on values", line)
        fixed += [tensor for argument in _deciding(node) for tensor in _held(graph, argument)]
    return fixed


def _held(graph: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    """The tensors of the program's own that a node is computed from."""
    if node.op == "get_attr":
        return [getattr(graph, str(node.target))]
    return [tensor for argument in node.all_input_nodes for tensor in _held(graph, argument)]


def _has_shape_from_values(node: fx.Node) -> bool:
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    return node.target is not torch.ops.aten.index.Tensor or bool(_deciding(node))


def _deciding(node: fx.Node) -> list[fx.Node]:
    """The arguments whose values decide about the size of the result."""
    if node.target is torch.ops.aten.index.Tensor:
        indices: Any = node.args[1]
        masks = [index for index in indices if isinstance(index, fx.Node)]
        return [mask for mask in masks if mask.meta["val"].dtype in (torch.bool, torch.uint8)]
    if node.target is torch.ops.aten.masked_select.default:
        return [node.args[1]]  # type: ignore[list-item]
    return list(node.all_input_nodes)


def _draws(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _selects_by_values(index: Any) -> bool:
    return any(torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in indices_of(index))


def _is_traced_index(index: Any) -> bool:
    return any(isinstance(part, Tensor) and is_traced(part) for part in indices_of(index))


def _is_real(constraint: Any) -> bool:
    """Whether a check is for NaN alone, which makes the loss NaN as well."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return isinstance(constraint, type(constraints.real))


def _fixed_repeats(frame: Any, value: Tensor, repeats: Any, *args: Any, **kwargs: Any) -> Any:
    """Repeats that are one number come out as a tensor of values otherwise, by which a size would depend on
    values."""
    del frame
    if not isinstance(repeats, int) or args or set(kwargs) - {"dim"}:
        return NotImplemented
    dim = kwargs.get("dim")
    value, dim = (value.flatten(), 0) if dim is None else (value, dim % value.dim())
    return (
        value.unsqueeze(dim + 1)
        .expand(*value.shape[: dim + 1], repeats, *value.shape[dim + 1 :])
        .flatten(dim, dim + 1)
    )
