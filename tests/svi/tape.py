"""A recorder for the CPU that behaves as a CUDA graph does, for tests without a GPU.

While it records nothing is computed: new tensors hold nonsense and what works in place does nothing. A
repetition runs the recorded operations on the recorded memory, without the Python around them. So a step that
keeps a number from the time of recording, or makes a tensor anew, gives wrong numbers here as it would there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_vae.svi.engines.steps import CannotError

aten = torch.ops.aten
WAITS = (aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default, aten.equal.default)


class Tape(TorchDispatchMode):
    """The operations in their order, with the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            raise CannotError(f"{func} waits for the device")
        if func._schema.is_mutable:
            self.calls.append((func, args, kwargs, []))
            return args[0] if func._schema.returns else None
        if any(value.alias_info is not None for value in func._schema.returns):
            return func(*args, **kwargs)  # a view of memory that lies where it lay
        # On copies, for batch norm changes its statistics without saying so.
        result = func(*tree_map_only(Tensor, torch.clone, args), **kwargs)
        made = [x for x in tree_leaves(result) if torch.is_tensor(x)]
        for x in made:
            x.fill_(0.5 if x.is_floating_point() else 0)  # what no operation refuses
        self.calls.append((func, args, kwargs, made))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            results = [x for x in tree_leaves(func(*args, **kwargs)) if torch.is_tensor(x)]
            for place, value in zip(made, results if made else [], strict=True):
                place.copy_(value)


class TapeRecorder:
    """In the place of :class:`~pyro_vae.svi.engines.cuda.CudaRecorder`."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"
        self.generator = torch.default_generator
        self.streams: list[Tensor] = []

    def record(self, work: Callable[[], None], together: int = 1) -> Callable[[], None]:
        work()
        tape = Tape()
        with tape:
            work()

        def replay() -> None:
            for _ in range(together):
                self.streams.append(self.generator.get_state())
                tape.replay()

        return replay

    def rewind(self, before: Tensor, ran: int, asked: int) -> None:
        assert torch.equal(before, self.streams[-asked])
        self.generator.set_state(self.streams[-asked:][ran])
