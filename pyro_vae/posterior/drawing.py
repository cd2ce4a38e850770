"""Draws from a guide, with the densities of guide and model for each observation and draw, block by block.

Everything in this package rests on these blocks. They come from the user's own Pyro programs, unchanged: the
guide is traced, the model is replayed on it, and each site's ``log_prob`` is summed over everything but the
draw and the observation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae.svi.batches import as_tensors
from pyro_vae.svi.isolation import isolated, owner

__all__ = ["CHUNK", "Block", "Pair", "prepare"]

CHUNK = 16_384
"""Rows, an observation and a draw each, that go through the pair at once by default."""

StoreState = Any

Layout = Literal["broadcast", "rows", "whole"]


class PairError(ValueError):
    """The pair has no per-observation densities; the message says why."""


@dataclass(frozen=True)
class Block:
    """Some draws for some observations. Densities are in nats, of shape (draws, observations).

    Attributes
    ----------
    observations, draws
        Which ones.
    latents
        By site name, of shape (draws, observations, ...).
    observed
        What the model was conditioned on, by site name, of shape (observations, ...).
    log_prior, log_guide
        log p(z) and log q(z|x).
    log_likelihood
        log p(x|z) by observed site.
    prior, replicates
        Latents drawn from the prior, and data drawn anew given ``latents``, by site, of shape (draws,
        observations, ...); empty unless asked for.
    """

    observations: slice
    draws: slice
    latents: dict[str, Tensor]
    observed: dict[str, Tensor]
    log_prior: Tensor
    log_guide: Tensor
    log_likelihood: dict[str, Tensor]
    prior: dict[str, Tensor] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reconstruction(self) -> Tensor:
        """log p(x|z), all observed sites together."""
        return sum(self.log_likelihood.values(), torch.zeros_like(self.log_prior))

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) − log q(z|x)."""
        return self.log_prior + self.reconstruction - self.log_guide

    @property
    def latent_dim(self) -> int:
        """Latent numbers per observation."""
        return sum(value[0, 0].numel() for value in self.latents.values())


@dataclass(frozen=True)
class Pair:
    """A model and a guide made ready for evaluation on some data; :func:`prepare` makes it."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Tensor, ...]
    model_state: StoreState
    guide_state: StoreState
    dtype: torch.dtype | None = None
    layout: Layout = "rows"
    nesting: int = 1

    @property
    def observations(self) -> int:
        """How many there are."""
        return len(self.args[0])

    def blocks(
        self, draws: int, seed: int, chunk: int = CHUNK, *, predictive: bool = False
    ) -> Iterator[Block]:
        """Every draw of every observation once: all draws of the first observations, then of the next.

        The noise depends on the seed, on ``chunk`` and on the place of the block alone, not on the guide:
        guides that draw in the same order are compared under common random numbers.
        """
        if draws < 1:
            raise ValueError(f"draws is {draws}; ask for at least 1")
        if chunk < 1:
            raise ValueError(
                f"chunk is {chunk}; it counts rows that go through the networks at once, so give at least 1"
            )
        n = self.observations
        rows = n if self.layout == "whole" else min(n, max(1, chunk // draws))
        repeats = min(draws, max(1, chunk // rows))
        for start in range(0, n, rows):
            for first in range(0, draws, repeats):
                observations = slice(start, min(start + rows, n))
                yield self.block(
                    observations, slice(first, min(first + repeats, draws)), seed, predictive=predictive
                )

    def block(self, observations: slice, draws: slice, seed: int, *, predictive: bool = False) -> Block:
        """The draws of one block; ``predictive`` adds draws from the prior and replicates of the data."""
        with self._evaluation(seed, observations.start, draws.start):
            args = tuple(arg[observations] for arg in self.args)
            guide_trace, model_trace = self._traces(args, draws.stop - draws.start)
            block = self._read(guide_trace, model_trace, observations, draws)
            return self._predict(block, guide_trace, args) if predictive else block

    @contextmanager
    def _evaluation(self, *key: int) -> Iterator[None]:
        """Nothing outside moves: store, random streams, validation, default dtype; no graph is built."""
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        with isolated(self.model, self.guide, seed=seed), _default_dtype(self.dtype), torch.no_grad():
            yield

    def _traces(self, args: tuple[Tensor, ...], count: int) -> tuple[Any, Any]:
        guide_trace = self._run(self.guide, self.guide_state, args, count)
        return guide_trace, self._run(self.model, self.model_state, args, count, given=guide_trace)

    def _run(
        self,
        program: Callable[..., Any],
        state: StoreState,
        args: tuple[Tensor, ...],
        count: int,
        *,
        given: Any = None,
        free: bool = False,
    ) -> Any:
        """The trace of one program, alone with its own parameters: the other's may have the same names.

        ``given`` is a trace whose latents it takes; ``free`` lets it draw what it observes.
        """
        if self.layout == "rows":
            args = tuple(arg.expand(count, *arg.shape).reshape(-1, *arg.shape[1:]) for arg in args)
        else:
            # inside of the other handlers, so that sites are expanded before their values are replayed
            program = pyro.plate("_draws", count, dim=-1 - self.nesting)(program)
        if free:
            program = poutine.uncondition(program)
        if given is not None:
            program = poutine.replay(program, trace=given)
        with pyro.get_param_store().scope(state):
            return poutine.trace(program).get_trace(*args)

    def _read(self, guide_trace: Any, model_trace: Any, observations: slice, draws: slice) -> Block:
        rows, count = observations.stop - observations.start, draws.stop - draws.start
        guide_sites, model_sites = _sample_sites(guide_trace), _sample_sites(model_trace)
        latents = {name: site for name, site in model_sites.items() if not site["is_observed"]}
        observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
        _check_sites(guide_sites, latents)

        def total(sites: dict[str, Any]) -> Tensor:
            zero = torch.zeros(count, rows, dtype=torch.float64)
            return sum((self._log_prob(site, count, rows) for site in sites.values()), zero)

        return Block(
            observations=observations,
            draws=draws,
            latents={name: self._split(site, count, rows) for name, site in latents.items()},
            observed={name: self._observed(site, rows) for name, site in observed.items()},
            log_prior=total(latents),
            log_guide=total(guide_sites),
            log_likelihood={name: total({name: site}) for name, site in observed.items()},
        )

    def _predict(self, block: Block, guide_trace: Any, args: tuple[Tensor, ...]) -> Block:
        """From the unconditioned model: conditioned, it would hand the data back as their own replicates."""
        rows, count = len(args[0]), block.draws.stop - block.draws.start
        given = self._run(self.model, self.model_state, args, count, given=guide_trace, free=True).nodes
        alone = self._run(self.model, self.model_state, args, count, free=True).nodes
        return replace(
            block,
            prior={name: self._split(alone[name], count, rows) for name in block.latents},
            replicates={name: self._split(given[name], count, rows) for name in block.log_likelihood},
        )

    def _log_prob(self, site: Any, count: int, rows: int) -> Tensor:
        """The site's density: masks count, subsampling and annealing scales do not."""
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        log_prob = self._lead(site, log_prob, count, rows)
        return log_prob.to("cpu", torch.float64).reshape(count, rows, -1).sum(-1)

    def _split(self, site: Any, count: int, rows: int) -> Tensor:
        """A site's value with draw and observation in front; plates of size 1 in between are dropped."""
        value = self._lead(site, site["value"], count, rows).cpu()
        inner = range(2, value.dim() - int(site["fn"].event_dim))
        return value.squeeze(tuple(i for i in inner if value.shape[i] == 1))

    def _lead(self, site: Any, tensor: Tensor, count: int, rows: int) -> Tensor:
        """Move draw and observation to the front of a tensor that has the site's batch shape first."""
        data_axis: int = len(site["fn"].batch_shape) - 1
        if not any(frame.dim == -1 for frame in site["cond_indep_stack"] if frame.vectorized):
            raise PairError(
                f"site '{site['name']}' is not in a plate over the observations at dim -1, so it has no "
                "density per observation; put it into pyro.plate('data', len(x)), or marginalize it"
            )
        if self.layout == "rows":
            if tensor.shape[data_axis] != count * rows:
                raise PairError(_wrong_rows(site["name"], tensor.shape[data_axis], count * rows))
            split: Tensor = tensor.unflatten(data_axis, (count, rows))
            return split.movedim((data_axis, data_axis + 1), (0, 1))
        if tensor.shape[data_axis] != rows:
            raise PairError(_wrong_rows(site["name"], tensor.shape[data_axis], rows))
        draw_axis = data_axis - self.nesting
        if draw_axis != 0 or tensor.shape[0] != count:
            raise PairError(f"site '{site['name']}' does not broadcast over draws")
        return tensor.movedim(data_axis, 1)

    def _observed(self, site: Any, rows: int) -> Tensor:
        value: Tensor = site["value"].cpu()
        return value[:rows] if self.layout == "rows" else value


def prepare(model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Pair:
    """Make a pair ready: copies in evaluation mode and float64, and the fastest right way to run them.

    Modules are copied, put into evaluation mode and, if both programs are modules, converted to float64.
    Plain functions run as they are. Three ways of drawing many times are tried on two observations:

    - ``broadcast``: an outer plate of draws, so the encoder runs once per observation and networks see
      (draws, rows, ...);
    - ``rows``: each observation repeated, for networks that do not broadcast (convolutions); it also checks
      the first way, because a network may broadcast wrongly without an error;
    - ``whole``: all observations at once, for guides with parameters of their own for each observation
      (Pyro's autoguides).

    Raises
    ------
    PairError
        If a latent is missing in one of the two programs or lies outside the observation plate.
    ValueError
        If the pair does not run on the data; the pair's own error is the cause.
    """
    errors: list[Exception] = []
    for candidate in _copies(model, guide, data):
        two = slice(0, min(2, candidate.observations))
        rows = _attempt(replace(candidate, layout="rows"), two, errors)
        broadcast = _attempt(replace(candidate, layout="broadcast"), two, errors)
        if broadcast is not None and (rows is None or _agree(broadcast[1], rows[1])):
            return broadcast[0]
        if rows is not None:
            return rows[0]
        whole = _attempt(replace(candidate, layout="whole"), slice(0, candidate.observations), errors)
        if whole is not None:
            return whole[0]
    told = [error for error in errors if isinstance(error, PairError)]
    if told:
        raise told[-1]  # of the most tolerant way
    raise ValueError(f"model and guide do not run on the first two observations: {errors[0]}") from errors[0]


def _attempt(pair: Pair, observations: slice, errors: list[Exception]) -> tuple[Pair, Block] | None:
    """Try a way of running on a few observations. Users' programs can fail with anything."""
    try:
        pair = replace(pair, nesting=_nesting(pair, observations))
        return pair, pair.block(observations, slice(0, 3), seed=0)
    except Exception as error:
        errors.append(error)
        return None


def _nesting(pair: Pair, observations: slice) -> int:
    """How many plates there are inside each other: the draws go outside of all of them."""
    single = replace(pair, layout="rows")
    with single._evaluation(0):
        traces = single._traces(tuple(arg[observations] for arg in pair.args), 1)
    frames = [
        f for trace in traces for site in _sample_sites(trace).values() for f in site["cond_indep_stack"]
    ]
    return max((-frame.dim for frame in frames if frame.vectorized), default=1)


def _agree(a: Block, b: Block) -> bool:
    return torch.allclose(a.log_weight, b.log_weight, rtol=1e-4, atol=1e-4, equal_nan=True)


def _copies(model: Callable[..., Any], guide: Callable[..., Any], data: Any) -> Iterator[Pair]:
    """The pair in float64 if both programs are modules, then in the dtype that it has."""
    store = pyro.get_param_store().get_state()
    modules = [module for module in (owner(model), owner(guide)) if module is not None]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    own = floating[0] if floating else torch.get_default_dtype()
    device = tensors[0].device if tensors else _device(data)
    for dtype in (torch.float64, None) if len(modules) == 2 else (None,):
        shared: dict[int, Any] = {}
        programs = [_evaluation_copy(program, dtype, shared) for program in (model, guide)]
        states = [_state(store, owner(program), dtype) for program in programs]
        args = as_tensors(data, device=device, dtype=dtype or own)
        yield Pair(programs[0], programs[1], args, states[0], states[1], dtype)


def _evaluation_copy(
    program: Callable[..., Any], dtype: torch.dtype | None, shared: dict[int, Any]
) -> Callable[..., Any]:
    """A module's copy in evaluation mode; ``shared`` keeps what model and guide have in common one thing."""
    module = owner(program)
    if module is None:
        return program
    autoguides = {
        part: (part._model, part.master) for part in module.modules() if isinstance(part, AutoGuide)
    }
    twin = copy.deepcopy(program, shared)
    twin_module: Any = owner(twin)
    twin_module.to(dtype=dtype).eval()
    # copying an autoguide takes its model away, from the original too
    for part, twin_part in zip(module.modules(), twin_module.modules(), strict=True):
        if isinstance(part, AutoGuide):
            part._model, part.master = autoguides[part]
            twin_part._model = tuple(_evaluation_copy(model, dtype, shared) for model in part._model or ())
    return twin


def _state(store: StoreState, module: nn.Module | None, dtype: torch.dtype | None) -> StoreState:
    """The store entries that a program needs: a function all, a module those that it does not hold itself.

    Entries under a module's own names, or put there by ``pyro.module`` (their names have ``$$$``), may belong
    to another pair.
    """
    if module is None:
        return {"params": dict(store["params"]), "constraints": dict(store["constraints"])}
    own = {name.removesuffix("_unconstrained") for name, _ in module.named_parameters()}
    params = {name: value for name, value in store["params"].items() if name not in own and "$$$" not in name}
    cast = {
        name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in params.items()
    }
    return {"params": cast, "constraints": {name: store["constraints"][name] for name in params}}


def _device(data: Any) -> torch.device:
    first = data[0] if isinstance(data, tuple) and data else data
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def _sample_sites(trace: Any) -> dict[str, Any]:
    """The sites with a density of their own."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def _check_sites(guide_sites: dict[str, Any], latents: dict[str, Any]) -> None:
    missing = sorted(latents.keys() - guide_sites.keys())
    if missing:
        raise PairError(
            f"the guide has no site '{missing[0]}', which the model draws; add it to the guide, "
            "or marginalize it in the model"
        )
    named = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    unknown = sorted(named - latents.keys())
    if unknown:
        raise PairError(
            f"the guide draws '{unknown[0]}', which is no latent site of the model "
            f"({sorted(latents)}); rename it, or mark it infer={{'is_auxiliary': True}}"
        )


def _wrong_rows(name: str, found: int, expected: int) -> str:
    return (
        f"site '{name}' has {found} rows where {expected} observations were given; the plate must have "
        "one row for each observation passed in, without subsampling of its own"
    )


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Constants that a program makes on the way (``torch.zeros(8)``) fit its parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
