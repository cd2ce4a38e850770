"""Draws from a guide, with the densities of guide and model for each observation and draw, block by block.

Everything in this package rests on these blocks. They come from the user's own Pyro programs, unchanged: the
guide is traced, the model is replayed on it, and each site's ``log_prob`` is summed over everything but the
draw and the observation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from pyro_vae.batches.rows import Rows
from pyro_vae.devices import making_tensors_on, threads_for
from pyro_vae.guides.local_guide import LocalGuide
from pyro_vae.guides.precision import exact_log_prob
from pyro_vae.pairs.enumeration import Program, by_chain_rule, drawn_given_the_rest, enumerated
from pyro_vae.pairs.isolation import evaluating, isolated
from pyro_vae.posterior.evaluation.block import Block
from pyro_vae.posterior.evaluation.sites import (
    DataPlate,
    PairError,
    SharedLatentError,
    in_data_plate,
    paired_sites,
    shared_latent,
    wrong_rows,
)
from pyro_vae.posterior.evaluation.surroundings import default_dtype, whole_plates
from pyro_vae.progress import progress_bar

CHUNK = 16_384
"""Rows, an observation and a draw each, that go through the pair at once by default."""

StoreState = Any
"""What ``pyro.get_param_store().get_state()`` returns; Pyro's own type for it is private."""

Layout = Literal["broadcast", "rows"]


@dataclass(frozen=True)
class Pair:
    """A model and a guide made ready for evaluation on some data.

    Made by :func:`~pyro_vae.posterior.evaluation.preparation.prepare`.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Rows, ...]
    model_state: StoreState
    guide_state: StoreState
    dtype: torch.dtype | None = None
    layout: Layout = "rows"
    nesting: int = 1
    whole: bool = False
    """Whether all observations must go through together."""
    flops: float = 0.0
    """Floating-point operations of one row, an observation and a draw, through both programs."""
    plate: DataPlate = DataPlate()  # noqa: RUF009  # it is frozen
    """That of the observations."""
    summed: frozenset[str] = frozenset()
    """Discrete latents that the guide leaves out, and that densities are summed over."""
    parameters: Mapping[str, Tensor] | None = None
    """Of a guide that has some for each observation, for those that go through, if they are known."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All observations as tensors, those of memory-mapped arrays too."""
        return tuple(arg[:] for arg in self.args)

    @property
    def observations(self) -> int:
        """How many there are."""
        return len(self.args[0])

    def blocks(
        self, draws: int, seed: int, chunk: int = CHUNK, *, predictive: bool = False, progress: bool = False
    ) -> Iterator[Block]:
        """Every draw of every observation once: all draws of the first observations, then of the next.

        The noise depends on the seed, on ``chunk`` and on the place of the block alone, not on the guide:
        guides that draw in the same order are compared under common random numbers.
        """
        n = self.observations
        rows = n if self.whole else min(n, max(1, chunk // draws))
        repeats = min(draws, max(1, chunk // rows))
        with progress_bar(n, "drawing for observations", enabled=progress) as show:
            for start in range(0, n, rows):
                observations = slice(start, min(start + rows, n))
                for first in range(0, draws, repeats):
                    part = slice(first, min(first + repeats, draws))
                    yield self.block(observations, part, seed, predictive=predictive)
                show(observations.stop, "")

    def block(self, observations: slice, draws: slice, seed: int, *, predictive: bool = False) -> Block:
        """The draws of one block; ``predictive`` adds draws from the prior and replicates of the data."""
        rows = (observations.stop - observations.start) * (draws.stop - draws.start)
        with self.evaluation(seed, observations.start, draws.start, rows=rows):
            args = tuple(arg[observations] for arg in self.args)
            guide_trace, model_trace = self.traces(args, draws.stop - draws.start)
            block = self.read(guide_trace, model_trace, observations, draws)
            return self._predict(block, guide_trace, args) if predictive else block

    @contextmanager
    def evaluation(self, *key: int, rows: int | None = None) -> Iterator[None]:
        """Nothing outside moves: store, random streams, validation, default dtype; no graph is built. So many
        ``rows`` go through at once, by default one for each observation."""
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        with (
            self.threads(self.observations if rows is None else rows),
            isolated(self.model, self.guide, seed=seed),
            evaluating(self.model, self.guide),
            default_dtype(self.dtype),
            whole_plates(),
            torch.no_grad(),
        ):
            yield

    def threads(self, rows: int) -> AbstractContextManager[None]:
        """Inside, one thread where this is enough for so many rows at once with their gradients."""
        return threads_for(3.0 * self.flops * rows)

    def traces(self, args: tuple[Tensor, ...], count: int) -> tuple[Any, Any]:
        """The guide's trace and the model's on its draws."""
        guide_trace = self.run_guide(args, count)
        discrete = enumerated if self.summed else None
        return guide_trace, self.run_model(args, count, given=guide_trace, discrete=discrete)

    def with_discrete(self, args: tuple[Tensor, ...], count: int, given: Any) -> Any:
        """The latents of a trace, and those that were left to enumeration, drawn given them and the data."""
        trace = self.run_model(args, count, given=given, discrete=drawn_given_the_rest)
        for name, site in list(trace.nodes.items()):
            if site["type"] == "sample" and site["is_observed"]:
                trace.remove_node(name)
        return trace

    @property
    def _plates(self) -> int:
        """How many dims plates take, that of the draws included."""
        return max(self.nesting, -self.plate.dim) + (self.layout == "broadcast")

    def run_guide(self, args: tuple[Tensor, ...], count: int, *, given: Any = None) -> Any:
        """The guide's trace of ``count`` draws for each observation in ``args``, or at the values of the
        trace ``given``."""
        guide: Any = self.guide
        known = self if self.parameters or self.layout == "broadcast" else self.knowing(args)
        if known.parameters:
            times = count if self.layout == "rows" else 1
            repeated = {k: v.repeat(times, *[1] * (v.dim() - 1)) for k, v in known.parameters.items()}
            guide = functools.partial(guide.sample_sites, repeated)
        placed = None if given is None else ReplayMessenger(trace=given)
        return self._run(guide, self.guide_state, args, count, placed)

    def knowing(self, args: tuple[Tensor, ...]) -> Pair:
        """The pair for these observations alone, with the guide's parameters computed once for all draws."""
        if not isinstance(self.guide, LocalGuide):
            return self
        with pyro.get_param_store().scope(self.guide_state), making_tensors_on(args[0].device):
            return replace(self, parameters=self.guide.local_parameters(*args))

    def run_model(
        self,
        args: tuple[Tensor, ...],
        count: int,
        *,
        given: Any = None,
        placement: Messenger | None = None,
        free: bool = False,
        discrete: Program | None = None,
    ) -> Any:
        """The model's trace; its latents come from a trace or a messenger. ``free`` draws its data anew;
        ``discrete`` does something about its enumerated latents."""
        model = poutine.uncondition(self.model) if free else self.model
        given = ReplayMessenger(trace=given) if given is not None else placement
        return self._run(model, self.model_state, args, count, given, discrete)

    def _run(
        self,
        program: Callable[..., Any],
        state: StoreState,
        args: tuple[Tensor, ...],
        count: int,
        given: Messenger | None = None,
        discrete: Program | None = None,
    ) -> Any:
        """The trace of one program, alone with its own parameters: the other's may have the same names."""
        if self.layout == "rows":
            args = tuple(arg.expand(count, *arg.shape).reshape(-1, *arg.shape[1:]) for arg in args)
        else:
            # inside of the other handlers, so that sites are expanded before they get their values
            program = pyro.plate("_draws", count, dim=-1 - self.nesting)(program)
        if given is not None and discrete is drawn_given_the_rest:
            program = discrete(given(program), self._plates)  # which runs the program twice
        elif given is not None:
            program = given(program if discrete is None else discrete(program, self._plates))
        with pyro.get_param_store().scope(state), making_tensors_on(args[0].device):
            return poutine.trace(program).get_trace(*args)

    def read(self, guide_trace: Any, model_trace: Any, observations: slice, draws: slice) -> Block:
        """What two traces say of these draws and observations."""
        rows, count = observations.stop - observations.start, draws.stop - draws.start
        guide_sites, latents, observed = paired_sites(guide_trace, model_trace, self.summed)

        def total(sites: dict[str, Any]) -> Tensor:
            zero = torch.zeros(count, rows, dtype=torch.float64, device="cpu")
            return sum((self.log_prob(site, count, rows) for site in sites.values()), zero)

        if self.summed:
            for name in self.summed:
                if not in_data_plate(model_trace.nodes[name], self.plate):
                    raise SharedLatentError(shared_latent(name))
            densities = by_chain_rule(
                model_trace, self.summed, [*latents, *observed], lambda t: self._by_row(t, count, rows)
            )
        else:
            densities = {name: total({name: site}) for name, site in (latents | observed).items()}
        log_priors = {name: densities[name] for name in latents}
        return Block(
            observations=observations,
            draws=draws,
            latents={name: self.value(guide_sites[name], count, rows) for name in latents},
            observed={
                name: self.observed_value(site, rows)
                for name, site in observed.items()
                if not site_is_factor(site)
            },
            log_prior=sum(log_priors.values(), total({})),
            log_priors=log_priors,
            log_guide=total(guide_sites),
            log_likelihood={name: densities[name] for name in observed},
        )

    def _predict(self, block: Block, guide_trace: Any, args: tuple[Tensor, ...]) -> Block:
        """From the unconditioned model: conditioned, it would hand the data back as their own replicates."""
        rows, count = len(args[0]), block.draws.stop - block.draws.start
        latents = block.latents
        if self.summed:
            guide_trace = self.with_discrete(args, count, guide_trace)
            for name in sorted(self.summed):
                latents = latents | {name: self.value(guide_trace.nodes[name], count, rows)}
        given = self.run_model(args, count, given=guide_trace, free=True).nodes
        alone = self.run_model(args, count, free=True).nodes
        return replace(
            block,
            latents=latents,
            prior={name: self.value(alone[name], count, rows) for name in latents},
            replicates={name: self.value(given[name], count, rows) for name in block.observed},
        )

    def _by_row(self, term: Tensor, count: int, rows: int) -> Tensor:
        """A term with plates at their dims, as (draws, observations)."""
        depth = self._plates
        term = term.reshape((1,) * (depth - term.dim()) + term.shape).to("cpu", torch.float64)
        if self.layout == "rows":
            each = term.movedim(self.plate.dim, 0)
            return each.expand(count * rows, *each.shape[1:]).reshape(count, rows, -1).sum(-1)
        each = term.movedim((-depth, self.plate.dim), (0, 1))
        return each.expand(count, rows, *each.shape[2:]).reshape(count, rows, -1).sum(-1)

    def log_prob(self, site: Any, count: int, rows: int) -> Tensor:
        """The site's density: masks count, subsampling and annealing scales do not."""
        log_prob = scale_and_mask(exact_log_prob(site["fn"], site["value"]), mask=site["mask"])
        log_prob = self.draws_first(site, log_prob, count, rows)
        return log_prob.to("cpu", torch.float64).reshape(count, rows, -1).sum(-1)

    def value(self, site: Any, count: int, rows: int) -> Tensor:
        """A site's value with draw and observation in front; plates of size 1 in between are dropped."""
        value = self.draws_first(site, site["value"], count, rows).cpu()
        inner = range(2, value.dim() - int(site["fn"].event_dim))
        return value.squeeze(tuple(i for i in inner if value.shape[i] == 1))

    def draws_first(self, site: Any, tensor: Tensor, count: int, rows: int) -> Tensor:
        """Move draw and observation to the front of a tensor that has the site's batch shape first."""
        data_axis: int = len(site["fn"].batch_shape) + self.plate.dim
        if not in_data_plate(site, self.plate):
            raise SharedLatentError(shared_latent(site["name"]))
        if self.layout == "rows":
            if tensor.shape[data_axis] != count * rows:
                raise PairError(wrong_rows(site["name"], tensor.shape[data_axis], count * rows))
            split: Tensor = tensor.unflatten(data_axis, (count, rows))
            return split.movedim((data_axis, data_axis + 1), (0, 1))
        if tensor.shape[data_axis] != rows:
            raise PairError(wrong_rows(site["name"], tensor.shape[data_axis], rows))
        draw_axis = len(site["fn"].batch_shape) - 1 - self.nesting
        if draw_axis != 0 or tensor.shape[0] != count:
            raise PairError(f"site '{site['name']}' does not broadcast over draws")
        return tensor.movedim(data_axis, 1)

    def observed_value(self, site: Any, rows: int) -> Tensor:
        """What an observed site was given, with the observation in front."""
        value: Tensor = site["value"].cpu()
        front = value.movedim(value.dim() - site["fn"].event_dim + self.plate.dim, 0)[:rows]
        inner = range(1, front.dim() - int(site["fn"].event_dim))
        return front.squeeze(tuple(i for i in inner if front.shape[i] == 1))
