"""Choose which steps a fit tries, the fastest first."""

import torch

from pyro_vae.arguments import brief
from pyro_vae.svi.engines.captured import CapturedSteps, RecordedGradients
from pyro_vae.svi.engines.eager import EagerSteps
from pyro_vae.svi.engines.many_steps import NativeSteps, RecordedSteps
from pyro_vae.svi.engines.native import has_compiler
from pyro_vae.svi.engines.steps import Steps, Task

ENGINES = ("auto", "captured", "cuda-graph", "eager", "native")

BUILD_SECONDS = 2.0
SAVED_PER_STEP, SAVED_PER_FLOP = 0.3e-3, 1e-12
"""Seconds, on the low side of what was measured (``benchmarks/results/cpu.md``)."""

STEPS_WORTH_FUSING = 50_000
"""A recorded step that inductor has fused saves some 0.2 ms, and the build takes about ten seconds."""


def check_engine(name: str, device: torch.device) -> None:
    """Raise a ValueError unless the engine of this name runs on the device."""
    needed = {"cuda-graph": "cuda", "native": "cpu"}.get(name, device.type)
    if device.type != needed:
        raise ValueError(f"engine is {brief(name)}, but the fit runs on {device}; give device={needed!r}")


def build_pays(steps: int, flops: float = 0.0) -> bool:
    """Whether there is a compiler, and this number of native steps saves more time than their build takes.

    By counting and not by the clock: the same fit always gets the same engine, and so gives the same bits.

    Parameters
    ----------
    steps
        That will be taken with one build.
    flops
        Floating-point operations of a step.

    Examples
    --------
    >>> build_pays(1000)
    False
    """
    return steps * (SAVED_PER_STEP + SAVED_PER_FLOP * flops) > BUILD_SECONDS and has_compiler()


def chain_of(task: Task, engine: str, *, steps: int, flops: float) -> list[Steps]:
    """The kinds of steps that a fit tries, the fastest first: each takes the steps until it cannot.

    Parameters
    ----------
    task
        What they work on.
    engine
        One of :data:`ENGINES`.
    steps, flops
        That will be taken, and the floating-point operations of one.
    """
    eager = EagerSteps(task)
    if engine == "eager":
        return [eager]
    captured = CapturedSteps(task)
    if engine == "cuda-graph" or (engine == "auto" and task.device.type == "cuda"):
        fuse = steps >= STEPS_WORTH_FUSING
        return [RecordedSteps(captured, fuse=fuse), RecordedGradients(captured), captured, eager]
    if engine == "native" or (engine == "auto" and task.device.type == "cpu" and build_pays(steps, flops)):
        return [NativeSteps(captured), captured, eager]
    return [captured, eager]
