"""Record work on a CUDA device as a CUDA graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.svi.engines.steps import CannotError

WARM_UP_RUNS = 3
"""Before work is recorded: libraries choose their kernels and allocate their workspaces then."""


class CudaRecorder:
    """Records work of one device as a CUDA graph, which is started as a whole.

    Tensors that the work only uses for itself live in memory of the graph. Draws come from the device's
    default generator, which a replay moves on as the work itself would: the noise is the same.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.generator: torch.Generator = torch.cuda.default_generators[index]

    def record(self, work: Callable[[], None], together: int = 1) -> Callable[[], None]:
        """What repeats the tensor operations of ``work`` on the same memory, ``together`` times at one start.
        ``work`` itself is run a few times before, and its effects are kept. Raises CannotError if the work
        cannot be recorded: for instance if it waits for the device's answer."""
        try:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device):
                self._warm_up(work)
                # Other threads may allocate meanwhile, as those of a data loader do.
                with torch.cuda.graph(recorded, capture_error_mode="thread_local"):
                    for _ in range(together):
                        work()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise CannotError(f"it cannot be recorded as a CUDA graph: {reason}") from error
        replay: Callable[[], None] = recorded.replay
        return replay

    def _warm_up(self, work: Callable[[], None]) -> None:
        """On a stream of its own, as recording demands. What waits for the device is found here: an error in
        the middle of a recording would leave the device's generator unusable."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS - 1):
                work()
            with _waiting_is_an_error():
                work()
        torch.cuda.current_stream().wait_stream(stream)

    def rewind(self, before: Tensor, ran: int, asked: int) -> None:
        """Set the stream to where it was after ``ran`` of the ``asked`` repetitions since ``before``.

        The state is a seed and the number of draws so far, and every repetition draws equally many.
        """
        state, now = before.clone(), self.generator.get_state()
        offset, end = state.view(torch.int64)[1:2], now.view(torch.int64)[1:2]
        offset += (end - offset) // asked * ran
        self.generator.set_state(state)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
