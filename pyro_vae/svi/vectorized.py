"""Many seeds of one pair, step by step together: the captured step, vectorized over the seeds."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.batches.batches import Batch
from pyro_vae.graphs.replay import make_replay
from pyro_vae.graphs.simplification import simplify
from pyro_vae.svi.engines.updates import make_update
from pyro_vae.svi.engines.verification import close
from pyro_vae.svi.members import Member, OneByOneError, by_pyro, captured
from pyro_vae.svi.noise_inputs import NoiseError, noise_as_inputs
from pyro_vae.svi.objectives.elbo import Objective

__all__ = ["VectorizedSteps"]


class VectorizedSteps:
    """The steps of all members together."""

    def __init__(
        self,
        members: list[Member],
        objective: Objective,
        lr: float,
        max_norm: float | None,
        count: Callable[[Batch], int],
    ) -> None:
        self.members, self.objective, self.max_norm, self.count = members, objective, max_norm, count
        leaves = zip(*(member.leaves for member in members), strict=True)
        self.stacks = [torch.stack([p.detach() for p in parts]) for parts in leaves]
        self.update = make_update(torch.optim.Adam(self.stacks, lr=lr, fused=True), self.stacks)
        self.graphs: dict[Any, tuple[Callable[..., Sequence[Tensor]], Callable[..., list[Tensor]]]] = {}
        self.kl_weight = torch.ones((), dtype=self.stacks[0].dtype)
        self.taken = 0

    def run(self, total: int) -> None:
        """So many steps of every seed; the parameters are written back at the end."""
        epoch = 0
        while self.taken < total:
            for batch in _stacked([member.batches.epoch(epoch) for member in self.members]):
                if self.taken < total:
                    self._take_step(batch)
            for member in self.members:
                member.recorder.close_epoch(self.taken, 0)
            epoch += 1
        with torch.no_grad():
            for i, member in enumerate(self.members):
                for parameter, stack in zip(member.leaves, self.stacks, strict=True):
                    parameter.copy_(stack[i])

    @torch.no_grad()
    def _take_step(self, batch: Batch) -> None:
        self.kl_weight.fill_(self.objective.weight_at(self.taken))
        shapes = tuple(x.shape for x in batch)
        if shapes not in self.graphs:
            self.graphs[shapes] = self._build(batch)
        step, draw = self.graphs[shapes]
        noise = [torch.stack(parts) for parts in zip(*(draw(m.generator) for m in self.members), strict=True)]
        loss, kl, reconstruction, *gradients = step(*self.stacks, self.kl_weight, *batch, *noise)
        norms = torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients]).norm(dim=0)
        rows = torch.stack([loss, kl, reconstruction, norms], -1)
        for member, terms in zip(self.members, rows.tolist(), strict=True):
            member.recorder.step(terms, self.count(tuple(x[0] for x in batch)))
            if not all(map(math.isfinite, (terms[0], terms[3]))):
                raise OneByOneError(f"step {self.taken + 1} of seed {member.seed} is not finite")
        if self.max_norm is not None:
            shrink = (self.max_norm / norms).clamp(max=1)
            gradients = [g * shrink.view(-1, *[1] * (g.dim() - 1)) for g in gradients]
        self.update([gradient.contiguous() for gradient in gradients])
        self.taken += 1

    def _build(
        self, batch: Batch
    ) -> tuple[Callable[..., Sequence[Tensor]], Callable[[torch.Generator], list[Tensor]]]:
        """The step of the first member, with its noise as inputs, vectorized; compared with Pyro for each."""
        self._write_back(0)
        graph = captured(self.members[0], self.objective, tuple(x[0] for x in batch), self.kl_weight)
        try:
            draw = noise_as_inputs(graph)
        except NoiseError as error:
            raise OneByOneError(str(error)) from error
        step = self._vectorized(graph, batch, draw)
        for i in range(len(self.members)):
            self._verify(i, step, draw, batch)
        return step, draw

    def _vectorized(
        self, graph: fx.GraphModule, batch: Batch, draw: Callable[[torch.Generator], list[Tensor]]
    ) -> Callable[..., Sequence[Tensor]]:
        noise = [torch.stack([x] * len(self.members)) for x in draw(torch.Generator())]
        inputs = [*self.stacks, self.kl_weight, *batch, *noise]
        dims = tuple(None if x is self.kl_weight else 0 for x in inputs)
        vectorized = torch.vmap(lambda *xs: tuple(graph.forward(*xs)), in_dims=dims)
        try:
            traced = make_fx(vectorized, _allow_non_fake_inputs=True)(*inputs)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise OneByOneError(f"vectorizing it failed with {type(error).__name__}: {reason}") from error
        return make_replay(simplify(traced))

    def _verify(
        self,
        i: int,
        step: Callable[..., Sequence[Tensor]],
        draw: Callable[[torch.Generator], list[Tensor]],
        batch: Batch,
    ) -> None:
        """One member's numbers against Pyro's own from the same random stream."""
        member = self.members[i]
        self._write_back(i)
        rows = tuple(x[i] for x in batch)
        wanted = by_pyro(member, self.objective, rows, self.kl_weight, seed=member.seed)
        noise = [
            torch.stack([x] * len(self.members)) for x in draw(torch.Generator().manual_seed(member.seed))
        ]
        given = [x[i] for x in step(*self.stacks, self.kl_weight, *batch, *noise)]
        if not all(close(a, b) for a, b in zip(given, wanted, strict=True)):
            raise OneByOneError(f"the vectorized step and Pyro give different numbers for seed {member.seed}")

    def _write_back(self, i: int) -> None:
        with torch.no_grad():
            for parameter, stack in zip(self.members[i].leaves, self.stacks, strict=True):
                parameter.copy_(stack[i])


def _stacked(epochs: list[Iterator[Batch]]) -> Iterator[Batch]:
    """The batches of all seeds, seed first."""
    for batches in zip(*epochs, strict=True):
        yield tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
