"""The fits of a sweep before they start: a pair for each seed, and what belongs to it alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.params.param_store import StateDict
from torch import Tensor, fx

from pyro_vae.arguments import check_programs
from pyro_vae.batches.batches import ArrayBatches, Batch, as_tensors
from pyro_vae.devices import forked_streams
from pyro_vae.pairs.isolation import Program, empty_store, isolated, one_at_a_time, untouched_buffers
from pyro_vae.pairs.numbers import meant_as_floats
from pyro_vae.pairs.parameters import bound, trainable_parameters
from pyro_vae.pairs.running import check_support, float_dtype, run_once, set_up
from pyro_vae.svi.engines.gradients import capture_step, gradient_step
from pyro_vae.svi.history import Recorder
from pyro_vae.svi.objectives.elbo import Objective
from pyro_vae.svi.result import Fit

__all__ = [
    "MakePair",
    "Member",
    "OneByOneError",
    "by_pyro",
    "captured",
    "make_members",
    "seeded_pair",
    "set_up_members",
]

MakePair = Callable[[], tuple[Program, Program]]


class OneByOneError(Exception):
    """These fits cannot, or had better not, be made together in this way; the message says why."""


@dataclass
class Member:
    """One seed's pair."""

    seed: int
    model: Program
    guide: Program
    batches: ArrayBatches
    generator: torch.Generator
    """Its noise: the stream that ``fit`` draws from with this seed."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    state: StateDict = field(default_factory=empty_store)
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.parameters.values())

    def fit(self, engine: str, steps_per_second: float) -> Fit:
        """What the sweep hands out."""
        return Fit(
            bound(self.model, self.state),
            bound(self.guide, self.state),
            self.recorder,
            self.seed,
            "cpu",
            engine,
            steps_per_second,
            _state=self.state,
        )


def seeded_pair(make_pair: MakePair, seed: int) -> tuple[Program, Program]:
    """A pair that was made after ``torch.manual_seed(seed)``; the stream outside does not move."""
    with one_at_a_time(), forked_streams():
        torch.manual_seed(seed)
        pair = make_pair()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"make_pair made a {type(pair).__name__}; let it return a model and a guide")
    check_programs(model=pair[0], guide=pair[1])
    return pair


def make_members(make_pair: MakePair, seeds: Sequence[int], data: Any, batch_size: int) -> list[Member]:
    """A pair for each seed; all gather from the same tensors."""
    members: list[Member] = []
    for seed in seeds:
        model, guide = seeded_pair(make_pair, seed)
        if not members:
            on, dtype = torch.device("cpu"), float_dtype(model, guide)
            whole = as_tensors(data, device=on, dtype=dtype)
            some = tuple(tensor[:batch_size] for tensor in whole)
            floats = meant_as_floats(model, guide, some, dtype, seed=seed)
            tensors = tuple(t.to(dtype) if i in floats else t for i, t in enumerate(whole))
            check_support(model, data, "data")
        batches = ArrayBatches(tensors, batch_size, seed)
        members.append(Member(seed, model, guide, batches, torch.Generator().manual_seed(seed)))
    return members


def set_up_members(members: list[Member]) -> tuple[Callable[[Batch], int], float]:
    """Make lazy parameters, and see that every pair has the same ones.

    Returns how many observations the totals of a batch are about, and a step's floating-point operations.
    """
    for i, member in enumerate(members):
        with isolated(member.model, member.guide, state=member.state, seed=member.seed):
            if i == 0:
                count, flops = set_up(member.model, member.guide, member.batches.first())
            else:
                run_once(member.model, member.guide, member.batches.first())
            state = pyro.get_param_store().get_state()
            member.parameters = trainable_parameters(member.model, member.guide, state)
    shapes = [[(name, p.shape, p.dtype) for name, p in member.parameters.items()] for member in members]
    if any(other != shapes[0] for other in shapes):
        raise OneByOneError("make_pair gives pairs whose parameters differ in name or shape")
    return count, flops


def captured(member: Member, objective: Objective, batch: Batch, kl_weight: Tensor) -> fx.GraphModule:
    """The graph of one member's step for such batches."""
    with isolated(member.model, member.guide, state=member.state, seed=0):
        with torch.no_grad(), untouched_buffers(member.model, member.guide), forked_streams():
            # Programs that look at the model anew for a new batch size do so outside of the graph.
            objective.estimate(member.model, member.guide, batch, kl_weight)
        try:
            with torch.enable_grad():
                return capture_step(objective, member.model, member.guide, member.leaves, batch, kl_weight)
        except Exception as error:  # whatever the user's program does that a tracer cannot follow
            reason = str(error).strip().split("\n")[0]
            raise OneByOneError(f"{type(error).__name__}: {reason}") from error


def by_pyro(
    member: Member, objective: Objective, batch: Batch, kl_weight: Tensor, *, seed: int | None = None
) -> Sequence[Tensor]:
    """Loss, KL, reconstruction and gradients of one member by Pyro itself; the stream outside does not
    move."""
    with (
        isolated(member.model, member.guide, state=member.state, seed=seed),
        untouched_buffers(member.model, member.guide),
        torch.enable_grad(),
    ):
        return gradient_step(objective, member.model, member.guide, member.leaves, batch, kl_weight)
