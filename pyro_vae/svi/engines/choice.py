"""Which engine a fit gets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.optim import Optimizer

from pyro_vae.batches.batches import ArrayBatches, Batch, Batches
from pyro_vae.svi.engines.captured import CapturedEngine, EagerEngine
from pyro_vae.svi.engines.compilation import CudaGraphEngine, InductorEngine
from pyro_vae.svi.engines.cuda import CudaRecorder
from pyro_vae.svi.engines.many_steps import Maker, ManySteps, build_pays, log_captured
from pyro_vae.svi.engines.native import NativeSteps, is_faster
from pyro_vae.svi.engines.recorded import RecordedSteps, Recorder
from pyro_vae.svi.engines.steps import Steps, UnsupportedError
from pyro_vae.svi.engines.updates import is_plain_fused_adam
from pyro_vae.svi.loop import BAD_STEPS_IN_A_ROW, Loop

__all__ = ["NativeMaker", "RecordedMaker", "check_engine", "make_engine"]

logger = logging.getLogger(__name__)

_ENGINES: dict[str, type[EagerEngine | CapturedEngine]] = {
    "auto": CapturedEngine,
    "captured": CapturedEngine,
    "cuda-graph": CapturedEngine,
    "eager": EagerEngine,
    "inductor": InductorEngine,
    "native": CapturedEngine,
}
"""What takes the steps that are taken one by one. On a CPU ``"auto"`` is captured: inductor's build of some
ten seconds is longer than most fits."""

MOST_BUILDS, MOST_RECORDINGS = 3, 20
"""A program that needs more changes all the time, and they take longer than they are good for."""

STEPS_WORTH_FUSING = 50_000
"""A step that inductor has fused saves some 0.2 ms, and the build takes about ten seconds."""

MOST_BAD = BAD_STEPS_IN_A_ROW - 1
"""The step that may be the last is taken alone, by an engine that can say what broke."""


@dataclass(frozen=True)
class NativeMaker:
    """Makes steps that are a C++ function."""

    optimizer: Optimizer
    max_norm: float | None
    data: Sequence[Tensor]
    by_name: bool
    """Otherwise they must also be faster than the graph's."""
    name: str = "native"
    most: int = MOST_BUILDS
    any_size: bool = False

    def __call__(self, graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Batch) -> Steps:
        steps = NativeSteps(
            graph, parameters, batch, self.optimizer, max_norm=self.max_norm, most_bad=MOST_BAD
        )
        if not self.by_name and not is_faster(steps, graph, self.data):
            raise UnsupportedError("it is slower on this machine")
        return steps


@dataclass(frozen=True)
class RecordedMaker:
    """Makes steps that a device repeats by itself."""

    optimizer: Optimizer
    max_norm: float | None
    recorder: Recorder
    fuse: bool
    """Whether the fit is long enough for a compiler."""
    name: str = "cuda-graph"
    most: int = MOST_RECORDINGS
    any_size: bool = True

    def __call__(self, graph: fx.GraphModule, parameters: Sequence[Tensor], batch: Batch) -> Steps:
        return RecordedSteps(
            graph,
            parameters,
            batch,
            self.optimizer,
            self.recorder,
            max_norm=self.max_norm,
            most_bad=MOST_BAD,
            fuse=self.fuse,
        )


def check_engine(name: str, device: torch.device) -> None:
    """Raise a ValueError unless the engine of this name runs on the device."""
    needed = {"cuda-graph": "cuda", "native": "cpu"}.get(name, device.type)
    if device.type != needed:
        raise ValueError(f"engine is {name!r}, but the fit runs on {device}; give device={needed!r}")


def make_engine(loop: Loop, batches: Batches, name: str, *, steps: int, flops: float) -> None:
    """Give a fit the engine of this name, and what takes many steps per call where that can be and pays.

    By counting and not by the clock, so that the same fit always gets the same engine.

    Parameters
    ----------
    loop
        Gets them.
    batches
        Of the whole data.
    steps, flops
        That will be taken, and the floating-point operations of one.
    """
    device = next(iter(loop.parameters.values())).device
    loop.engine = _engine(loop, _ENGINES[name])
    native = name == "native" or (name == "auto" and device.type == "cpu" and build_pays(steps, flops))
    recorded = name == "cuda-graph" or (name == "auto" and device.type == "cuda")
    if native or recorded:
        try:
            recorder = None if native else CudaRecorder(device)
            loop.many_steps = _many_steps(loop, batches, name, recorder, steps)
        except UnsupportedError as error:
            if recorded:
                logger.info("this fit records loss and gradients alone as a CUDA graph: %s", error)
                loop.engine = _engine(loop, CudaGraphEngine)
            else:
                log_captured(str(error), by_name=name == "native")


def _engine(loop: Loop, kind: type[EagerEngine | CapturedEngine]) -> EagerEngine | CapturedEngine:
    return kind(loop.objective, loop.model, loop.guide, list(loop.parameters.values()))


def _many_steps(loop: Loop, batches: Batches, name: str, recorder: Recorder | None, steps: int) -> ManySteps:
    """Recorded steps or, without a recorder, native ones."""
    if loop.ranks.size > 1:
        raise UnsupportedError("its gradients are summed over processes")
    if not isinstance(batches, ArrayBatches) or not isinstance(loop.engine, CapturedEngine):
        raise UnsupportedError("its batches come from a loader, and are not gathered from tensors")
    make: Maker
    if recorder is None:
        make = NativeMaker(loop.optimizer, loop.max_norm, batches.tensors, by_name=name == "native")
    elif is_plain_fused_adam(loop.optimizer):
        fuse = steps >= STEPS_WORTH_FUSING
        make = RecordedMaker(loop.optimizer, loop.max_norm, recorder, fuse)
    else:
        raise UnsupportedError(f"its optimizer {type(loop.optimizer).__name__} is not fused Adam")
    by_name = name != "auto"
    return ManySteps(loop.engine, make, loop.optimizer, loop.schedule, batches.tensors, by_name=by_name)
