"""A pretended CUDA device: which line mixes tensors of two devices?

``with pretend_cuda():`` lets torch say that there is one CUDA device. What is put there is a tensor that says
``device='cuda:0'`` and holds an ordinary tensor of the CPU, which does the arithmetic. What CUDA refuses is
refused: an operation on tensors of both devices (a number of the CPU among elementwise operands, an index on
the CPU and copies aside), ``numpy()``, a generator of the other device. The random stream of the device is
another one than the CPU's.

It can show that a program mixes devices, reads the wrong stream, or leaves something on the CPU. It cannot
show that the program runs on a GPU: no kernel, stream, graph or memory of CUDA is behind it, and what CUDA
refuses for another reason (a dtype, a missing kernel) it lets pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_map

from pyro_vae.svi.engines import captured, many_steps
from tests.svi.tape import TapeRecorder

__all__ = ["CUDA", "OnDevice", "RecordsOnDevice", "pretend_cuda"]

CUDA = torch.device("cuda", 0)
_STAND_IN = torch.device("meta")
"""What C++ sees in place of CUDA: of the devices that a build for the CPU knows, the one besides it that
autograd runs on."""

_TRACING = torch._C._TorchDispatchModeKey.PROXY
_STREAM = torch.Generator()

_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_COPIES = {_aten.copy_.default, _aten.copy.default, _aten._to_copy.default}
_TAKE_NUMBERS = {
    _aten.where.self,
    _aten.fill_.Tensor,
    _aten.masked_fill.Tensor,
    _aten.masked_fill_.Tensor,
    *_INDEXING,
}
"""Take a number of the CPU beside tensors of the device, as elementwise operations do."""

_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class OnDevice(Tensor):
    """A tensor that says that it is on CUDA."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_STAND_IN,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: None = None) -> str:
        return f"{self.held!r} on the pretended device"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """With this, ``nn.Module.to`` moves a parameter and leaves it the object that it is."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], _context: None, _size: Any, _stride: Any) -> Tensor:
        return OnDevice(inner["held"])

    def __reduce_ex__(self, protocol: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("a tensor of the device is pickled: it could be read on such a machine only")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Arithmetic(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments: factories, copies to it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch._C._get_dispatch_mode(_TRACING) is not None:
            # torch asks a tracer last, but it must note what is asked of the device, not how it is answered.
            with _pop_mode_temporarily(_TRACING) as tracer, self:
                return tracer.__torch_dispatch__(func, types, args, kwargs)
        return _run(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Translates the device's name before C++ reads it."""

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            _swap(args[0], args[1].detach().requires_grad_(args[0].requires_grad))
            return None
        if func is torch.device:
            return func(*args, **given)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], OnDevice):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.tolist:
            return func(args[0].cpu())
        if func is Tensor.new and isinstance(args[0], OnDevice):
            return args[0].new_empty(*args[1:])
        if func in _FROM_NUMBERS:
            place = given.pop("device", None)
            if place is None and isinstance(args[0], OnDevice):
                place = _STAND_IN
            if func is Tensor.new_tensor:
                given.setdefault("dtype", args[0].dtype)
                func, args = torch.tensor, args[1:]
            made = func(*args, **given)
            return made if place is None else made.to(_stand_in(place))
        return func(*map(_stand_in, args), **{name: _stand_in(value) for name, value in given.items()})


def _stand_in(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return _STAND_IN
    return _STAND_IN if isinstance(value, torch.device) and value.type == "cuda" else value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """As ``tree_map``, which takes ten times as long for what an operation takes and gives."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_mapped(change, each) for each in value])
    if kind is dict:
        return {name: _mapped(change, each) for name, each in value.items()}
    if kind is not torch.Size and isinstance(value, tuple | list | dict):
        return tree_map(change, value)
    return change(value)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(found.append, value)
    return found


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    ours = [x for x in _leaves((tuple(args), dict(kwargs))) if isinstance(x, OnDevice)]
    place = kwargs.get("device")
    on_device = bool(ours) if place is None else place == _STAND_IN
    if not ours and not on_device:
        return func(*args, **kwargs)
    if ours:
        _require_one_device(func, args)
    if ours and func is _aten._local_scalar_dense.default:
        return func(ours[0].held)
    held_of = {id(x.held): x for x in ours}
    plain, given = _mapped(lambda x: x.held if isinstance(x, OnDevice) else x, (tuple(args), dict(kwargs)))
    if place is not None:
        given["device"] = torch.device("cpu")
    given.pop("pin_memory", None)
    result = _seeded(func, plain, given, on_device)
    if not on_device:
        return result
    if func is _aten.copy_.default and not isinstance(args[0], OnDevice):
        return args[0]

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return held_of[id(x)] if id(x) in held_of else OnDevice(x)

    return _mapped(wrapped, result)


def _seeded(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], on_device: bool) -> Any:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return func(*args, **kwargs)
    generators = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)]
    if generators:
        if on_device and generators[0] is not _STREAM:
            raise RuntimeError(f"{func} draws on the device from a generator of the CPU")
        return func(*args, **kwargs)
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_STREAM.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _STREAM.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


def _require_one_device(func: Any, args: Sequence[Any]) -> None:
    if func in _COPIES:
        return
    elementwise = func in _TAKE_NUMBERS or torch.Tag.pointwise in getattr(func, "tags", ())
    operands = list(args)
    if func in _INDEXING:
        if not isinstance(args[0], OnDevice):
            raise RuntimeError(f"{func} indexes a tensor of the CPU by one of the device")
        operands[1] = None
    tensors = [x for x in _leaves(operands) if isinstance(x, Tensor)]
    written = args and isinstance(args[0], Tensor) and str(func).split(".")[-2].endswith("_")
    strangers = [x for x in tensors if not isinstance(x, OnDevice)]
    if written and strangers and strangers[0] is args[0]:
        raise RuntimeError(f"{func} writes what is on the device into a tensor of the CPU")
    for stranger in strangers:
        if stranger.dim() > 0 or not elementwise:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} was given one of shape "
                f"{tuple(stranger.shape)} on the CPU beside one on the device"
            )


class RecordsOnDevice(TapeRecorder):
    """In the place of :class:`~pyro_vae.svi.engines.cuda.CudaRecorder`."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.generator, self.streams = _STREAM, []

    @classmethod
    @contextmanager
    def in_place_of_cuda_graphs(cls) -> Iterator[None]:
        """Inside, fits record with this."""
        with (
            mock.patch.object(many_steps, "CudaRecorder", cls),
            mock.patch.object(captured, "CudaRecorder", cls),
        ):
            yield


def _seed_stream(seed: int) -> None:
    _STREAM.manual_seed(seed)


def _stream(_device: Any = None) -> Tensor:
    return _STREAM.get_state()


def _set_stream(state: Tensor, _device: Any = None) -> None:
    _STREAM.set_state(state)


_CUDA_SAYS: dict[str, Callable[..., Any]] = {
    "_lazy_init": lambda: None,
    "current_device": lambda: 0,
    "device_count": lambda: 1,
    "get_rng_state": _stream,
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "is_initialized": lambda: True,
    "manual_seed": _seed_stream,
    "manual_seed_all": _seed_stream,
    "set_device": lambda device: None,
    "set_rng_state": _set_stream,
    "synchronize": lambda device=None: None,
}


def _swap(one: Tensor, other: Tensor) -> None:
    """What ``torch.utils.swap_tensors`` does; that one refuses tensors with weak references, which Pyro's
    constrained parameters have and which CUDA does not mind."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Inside, there is one CUDA device, and it is pretended."""
    with ExitStack() as stack:
        for name, answer in _CUDA_SAYS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch.cuda, "default_generators", (_STREAM,)))
        handled = (*proxy_tensor.HANDLED_TYPES, OnDevice)
        stack.enter_context(mock.patch.object(proxy_tensor, "HANDLED_TYPES", handled))
        stack.enter_context(mock.patch.object(torch.utils, "swap_tensors", _swap))
        stack.enter_context(_Arithmetic())
        stack.enter_context(_Names())
        swapped = torch.__future__.get_swap_module_params_on_conversion()
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        yield
