"""Many seeds of one pair, each by native steps of its own, on as many threads as there are cores."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.batches.batches import Batch
from pyro_vae.svi.engines.native import BuildError, NativeSteps
from pyro_vae.svi.engines.rates import RatesAhead
from pyro_vae.svi.engines.steps import UnsupportedError
from pyro_vae.svi.engines.trial import gives
from pyro_vae.svi.members import Member, OneByOneError, by_pyro, captured
from pyro_vae.svi.objectives.elbo import Objective

__all__ = ["NativeSeeds"]


@dataclass
class _Runner:
    """One member with its functions by batch size: that of full batches, and of the last of an epoch."""

    member: Member
    steps: dict[int, NativeSteps]
    rates: RatesAhead | None
    bad_in_a_row: int = 0

    def in_a_call(self, rows: Tensor) -> Tensor:
        """So many of the next batches as one call should take."""
        return rows[: self.steps[rows.shape[1]].steps_per_call] if rows.numel() else rows

    def run(self, rows: Tensor, weights: Tensor, count: int) -> int:
        """One call; how many of its steps were not finite."""
        native = self.steps[rows.shape[1]]
        native.bad_in_a_row = self.bad_in_a_row
        try:
            rates = None if self.rates is None else self.rates.take(len(rows))
        except ValueError as error:
            raise OneByOneError(str(error)) from error
        terms = native.run(self.member.batches.tensors, rows, weights, rates)
        self.bad_in_a_row = native.bad_in_a_row
        if self.bad_in_a_row == native.most_bad:
            raise OneByOneError(f"{native.most_bad} steps of seed {self.member.seed} are not finite")
        bad = int(terms.bad.sum())
        if self.rates is not None:
            self.rates.keep(len(rows) - bad)
        for row in torch.stack(terms[:4], 1).tolist():
            self.member.recorder.step(row, count)
        return bad


class NativeSeeds:
    """The fits of all members, at the same time.

    The generated function runs without Python's lock, so threads share the cores with nothing to wait for:
    that beats both one fit after another on all cores and a step that is vectorized over the seeds. Pyro
    itself runs only before: when the function is built, and compared with Pyro for every member.

    Raises
    ------
    OneByOneError
        If the graph cannot become native, there is no compiler, a member's numbers are not Pyro's, or (while
        it runs) three steps in a row are not finite.
    """

    def __init__(
        self,
        members: Sequence[Member],
        objective: Objective,
        optimizers: Sequence[Optimizer],
        schedules: Sequence[LRScheduler | None],
        max_norm: float | None,
        count: Callable[[Batch], int],
        most_bad: int,
        threads: int,
    ) -> None:
        self.objective, self.count, self.max_norm, self.most_bad = objective, count, max_norm, most_bad
        self.threads = threads
        self._stop = threading.Event()
        made = self._built(members, optimizers)
        for native_steps in made.values():
            self._check(members, native_steps)
        self.runners = []
        for i, (member, optimizer, schedule) in enumerate(zip(members, optimizers, schedules, strict=True)):
            rates = None if schedule is None else RatesAhead(optimizer, schedule)
            self.runners.append(_Runner(member, {size: steps[i] for size, steps in made.items()}, rates))

    def _built(
        self, members: Sequence[Member], optimizers: Sequence[Optimizer]
    ) -> dict[int, list[NativeSteps]]:
        """By batch size, the function for every member: captured once for each size, and built by a compiler
        for each at the same time."""
        batches, weight = members[0].batches, torch.ones((), dtype=members[0].leaves[0].dtype)
        sizes = sorted({batches.batch_size, batches.observations % batches.batch_size} - {0})
        rows = [tuple(x[:size] for x in batches.tensors) for size in sizes]
        graphs = [captured(members[0], self.objective, batch, weight) for batch in rows]

        def native_steps(graph: fx.GraphModule, batch: Batch) -> list[NativeSteps]:
            return [
                NativeSteps(
                    graph,
                    member.leaves,
                    batch,
                    optimizer,
                    max_norm=self.max_norm,
                    most_bad=self.most_bad,
                    threads=1,
                    generator=member.generator,
                )
                for member, optimizer in zip(members, optimizers, strict=True)
            ]

        try:
            with ThreadPoolExecutor(len(sizes)) as compilers:
                return dict(zip(sizes, compilers.map(native_steps, graphs, rows), strict=True))
        except (UnsupportedError, BuildError) as error:
            raise OneByOneError(str(error)) from error

    def _check(self, members: Sequence[Member], native_steps: Sequence[NativeSteps]) -> None:
        """Each member's first numbers against Pyro's own."""
        for member, native in zip(members, native_steps, strict=True):

            def by_pyro_itself(kl_weight: Tensor, rows: Batch, member: Member = member) -> Sequence[Tensor]:
                return by_pyro(member, self.objective, rows, kl_weight)

            if not gives(native, member.batches.tensors, by_pyro_itself):
                raise OneByOneError(f"the native step and Pyro give different numbers for seed {member.seed}")

    def run(self, total: int) -> None:
        """So many steps of every seed."""
        with ThreadPoolExecutor(min(len(self.runners), self.threads)) as threads:
            try:
                for done in [threads.submit(self._run_one, runner, total) for runner in self.runners]:
                    done.result()
            except BaseException:  # an interrupt, too: the others end after the call that they are in
                self._stop.set()
                raise

    def _run_one(self, runner: _Runner, total: int) -> None:
        taken = epoch = 0
        while taken < total:
            ahead, bad = runner.member.batches.epoch(epoch), 0
            while taken < total:
                if self._stop.is_set():
                    return
                full = ahead.full_batches()
                rows = runner.in_a_call((full if len(full) else ahead.rest())[: total - taken])
                if not rows.numel():
                    break
                weights = [self.objective.weight_at(taken + i) for i in range(len(rows))]
                bad += runner.run(rows, torch.tensor(weights, dtype=torch.float64), self.count((rows[0],)))
                ahead.skip(len(rows))
                taken += len(rows)
            runner.member.recorder.close_epoch(taken, bad)
            epoch += 1
