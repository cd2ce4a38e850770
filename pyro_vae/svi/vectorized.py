"""Many seeds of one pair at once: the captured step, vectorized over the seeds."""

import difflib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.params.param_store import StateDict
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.svi.arguments import check_choices, check_numbers, check_programs, parameters_of
from pyro_vae.svi.batches import ArrayBatches, Batch, as_tensors
from pyro_vae.svi.capture import capture_step, gradient_step, untouched_buffers
from pyro_vae.svi.devices import resolve_device
from pyro_vae.svi.first_run import check_support
from pyro_vae.svi.fitted import Fit
from pyro_vae.svi.fitting import fit, float_dtype, set_up
from pyro_vae.svi.history import Recorder
from pyro_vae.svi.isolation import empty_store, isolated, one_at_a_time
from pyro_vae.svi.loop import training_mode
from pyro_vae.svi.mapped import is_mapped
from pyro_vae.svi.noise_inputs import NoiseError, noise_as_inputs
from pyro_vae.svi.objective import ELBO, Objective, Program
from pyro_vae.svi.parameters import bound, trainable_parameters
from pyro_vae.svi.simplification import simplify
from pyro_vae.svi.threads import WORTH_A_SECOND_THREAD, threads_for
from pyro_vae.svi.updates import make_update
from pyro_vae.svi.verification import close

__all__ = ["sweep"]

logger = logging.getLogger(__name__)
VECTORIZED_OPTIONS = {"epochs", "steps", "batch_size", "lr", "objective", "max_norm", "progress", "device"}


def sweep(
    make_pair: Callable[[], tuple[Program, Program]], seeds: Sequence[int], data: Any, **options: Any
) -> list[Fit]:
    """Fit the same pair with several seeds.

    Each fit is the one that :func:`fit` gives with that seed, for a pair that was made after
    ``torch.manual_seed(seed)``: the same batches and the same noise, equal up to rounding. Where it pays,
    all seeds take each step together: the captured graph is vectorized over them, so that its overhead is
    paid once. That is so on the CPU for steps of less than 100 MFLOP (64-128-8 networks at batch 128: 2 to 4
    times the throughput; at 784-400-20 nothing is gained). Larger steps, pairs whose graph draws anything but
    normal noise or changes buffers, and options other than ``epochs``, ``steps``, ``batch_size``, ``lr``,
    ``objective``, ``max_norm``, ``progress`` and a CPU ``device`` are fitted one after another, and the log
    says why.

    Parameters
    ----------
    make_pair
        Makes a new model and guide; every call makes the same structure.
    seeds
        One fit for each.
    data
        As for :func:`fit`.
    **options
        Those of :func:`fit`, except ``seed``.

    Returns
    -------
    list of Fit
        In the order of ``seeds``. Where they were fitted together, ``engine`` is ``"vectorized"`` and
        ``steps_per_second`` counts the steps of all.

    Raises
    ------
    ValueError, TypeError, NonFiniteError
        As :func:`fit`.

    Examples
    --------
    >>> import torch, pyro_vae
    >>> def make_pair():
    ...     model = pyro_vae.models.VAE(torch.nn.Linear(2, 5), 2, "normal")
    ...     return model, pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(5, 16))
    >>> fits = pyro_vae.sweep(make_pair, range(3), torch.randn(256, 5), epochs=2, progress=False)
    >>> [fitted.seed for fitted in fits]
    [0, 1, 2]
    """
    _check_sweep(make_pair, seeds, options)
    seeds = list(seeds)
    try:
        return _fit_together(make_pair, seeds, data, options)
    except _OneByOneError as reason:
        logger.info("the seeds are fitted one after another: %s", reason)
    return [fit(*_seeded(make_pair, seed), data, seed=seed, **options) for seed in seeds]


class _OneByOneError(Exception):
    """These fits cannot, or had better not, be vectorized; the message says why."""


def _seeded(make_pair: Callable[[], tuple[Program, Program]], seed: int) -> tuple[Program, Program]:
    with one_at_a_time(), torch.random.fork_rng():
        torch.manual_seed(seed)
        pair = make_pair()
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"make_pair made a {type(pair).__name__}; let it return a model and a guide")
    check_programs(model=pair[0], guide=pair[1])
    return pair


def _check_sweep(make_pair: Any, seeds: Any, options: dict[str, Any]) -> None:
    """Whatever can be said before the first fit, however the fits will run."""
    if not callable(make_pair) or isinstance(make_pair, torch.nn.Module):
        raise TypeError(
            f"make_pair is a {type(make_pair).__name__}; give a function that makes a model and a guide"
        )
    if "seed" in options:
        raise TypeError("sweep takes seeds, one for each fit, and not seed")
    if options.get("checkpoint") is not None:
        raise TypeError("sweep takes no checkpoint; give each fit its own, fit(..., seed=0, checkpoint=...)")
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds is {seeds!r}; give one seed for each fit, such as range({seeds!r})")
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds is empty; give at least one seed")
    for i, seed in enumerate(seeds):
        check_numbers(**{f"seeds[{i}]": seed})
    known = parameters_of(fit)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"{name!r} is no option of fit; {hint}")
    numbers = ("epochs", "steps", "batch_size", "lr", "patience", "max_norm")
    check_numbers(**{name: options[name] for name in numbers if name in options})
    check_choices(
        objective=options.get("objective") or ELBO(),
        engine=options.get("engine", "auto"),
        lr_multiplier=options.get("lr_multiplier"),
        optimizer=options.get("optimizer"),
        schedule=options.get("schedule"),
        callbacks=options.get("callbacks", ()),
    )
    resolve_device(options.get("device", "auto"))


@dataclass
class _Member:
    """One seed's pair, with what belongs to it alone."""

    seed: int
    model: Program
    guide: Program
    batches: ArrayBatches
    generator: torch.Generator
    parameters: dict[str, Tensor] = field(default_factory=dict)
    state: StateDict = field(default_factory=empty_store)
    recorder: Recorder = field(default_factory=Recorder)


def _fit_together(
    make_pair: Callable[[], tuple[Program, Program]], seeds: list[int], data: Any, options: dict[str, Any]
) -> list[Fit]:
    if len(seeds) < 2:
        raise _OneByOneError(f"there are {len(seeds)} of them")
    if set(options) - VECTORIZED_OPTIONS:
        raise _OneByOneError(f"{', '.join(sorted(set(options) - VECTORIZED_OPTIONS))} given")
    if torch.device(_device(options)).type != "cpu" or isinstance(data, torch.utils.data.Dataset):
        raise _OneByOneError("only tensors on the CPU are vectorized")
    if any(map(is_mapped, data if isinstance(data, tuple) else (data,))):
        raise _OneByOneError("memory-mapped data are read batch by batch")
    if isinstance(data, torch.utils.data.DataLoader):
        raise _OneByOneError("a DataLoader gives one batch at a time")
    sizes = {name: options.get(name) for name in ("epochs", "steps", "batch_size", "lr", "max_norm")}
    objective = options.get("objective") or ELBO()
    members = _members(make_pair, seeds, data, sizes["batch_size"] or 128)
    with ExitStack() as modes:
        for member in members:
            modes.enter_context(training_mode((member.model, member.guide), training=True))
        count, flops = _set_up_members(members)
        if flops >= WORTH_A_SECOND_THREAD:
            raise _OneByOneError(f"a step has {flops / 1e6:.0f} MFLOP, which fills the processor by itself")
        started = time.perf_counter()
        with threads_for(flops):
            run = _Run(members, objective, sizes["lr"] or 1e-3, sizes["max_norm"], count)
            run.steps(_length(sizes["epochs"], sizes["steps"], len(members[0].batches)))
        seconds = time.perf_counter() - started
    rate = len(members) * run.taken / max(seconds, 1e-9)
    return [
        Fit(
            bound(member.model, member.state),
            bound(member.guide, member.state),
            member.recorder.dataset(),
            member.seed,
            "cpu",
            "vectorized",
            rate,
            _state=member.state,
        )
        for member in members
    ]


def _device(options: dict[str, Any]) -> Any:
    device = options.get("device", "auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _length(epochs: int | None, steps: int | None, batches: int) -> int:
    if not (epochs or steps):
        return 100 * batches
    return int(min(steps or math.inf, (epochs or math.inf) * batches))


def _members(
    make_pair: Callable[[], tuple[Program, Program]], seeds: list[int], data: Any, batch_size: int
) -> list[_Member]:
    members: list[_Member] = []
    for seed in seeds:
        model, guide = _seeded(make_pair, seed)
        if not members:
            tensors = as_tensors(data, device=torch.device("cpu"), dtype=float_dtype(model, guide))
            check_support(model, data, "data")
        batches = ArrayBatches(tensors, batch_size, seed)
        members.append(_Member(seed, model, guide, batches, torch.Generator().manual_seed(seed)))
    return members


def _set_up_members(members: list[_Member]) -> tuple[Callable[[Batch], int], float]:
    """Make lazy parameters, and see that every pair has the same ones."""
    for member in members:
        with isolated(member.model, member.guide, state=member.state, seed=member.seed):
            count, flops = set_up(member.model, member.guide, member.batches.first())
            state = pyro.get_param_store().get_state()
            member.parameters = trainable_parameters(member.model, member.guide, state)
    shapes = [[(name, p.shape, p.dtype) for name, p in member.parameters.items()] for member in members]
    if any(other != shapes[0] for other in shapes):
        raise _OneByOneError("make_pair gives pairs whose parameters differ in name or shape")
    return count, flops


class _Run:
    """The steps of all members together."""

    def __init__(
        self,
        members: list[_Member],
        objective: Objective,
        lr: float,
        max_norm: float | None,
        count: Callable[[Batch], int],
    ) -> None:
        self.members, self.objective, self.max_norm, self.count = members, objective, max_norm, count
        leaves = [list(member.parameters.values()) for member in members]
        self.stacks = [torch.stack([p.detach() for p in parts]) for parts in zip(*leaves, strict=True)]
        self.update = make_update(torch.optim.Adam(self.stacks, lr=lr, fused=True), self.stacks)
        self.graphs: dict[Any, tuple[Callable[..., Sequence[Tensor]], Callable[..., list[Tensor]]]] = {}
        self.kl_weight = torch.ones((), dtype=self.stacks[0].dtype)
        self.taken = 0

    def steps(self, total: int) -> None:
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
                for parameter, stack in zip(member.parameters.values(), self.stacks, strict=True):
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
                raise _OneByOneError(f"step {self.taken + 1} of seed {member.seed} is not finite")
        if self.max_norm is not None:
            shrink = (self.max_norm / norms).clamp(max=1)
            gradients = [g * shrink.view(-1, *[1] * (g.dim() - 1)) for g in gradients]
        self.update([gradient.contiguous() for gradient in gradients])
        self.taken += 1

    def _build(
        self, batch: Batch
    ) -> tuple[Callable[..., Sequence[Tensor]], Callable[[torch.Generator], list[Tensor]]]:
        """The step of the first member, with its noise as inputs, vectorized; compared with Pyro for each."""
        first = self.members[0]
        with isolated(first.model, first.guide, state=first.state, seed=0), torch.enable_grad():
            self._write_back(0)
            with torch.random.fork_rng(), torch.no_grad(), untouched_buffers(first.model, first.guide):
                # Programs that look at the model anew for a new batch size do so outside of the graph.
                rows = tuple(x[0] for x in batch)
                self.objective.estimate(first.model, first.guide, rows, self.kl_weight)
            try:
                graph = capture_step(
                    self.objective,
                    first.model,
                    first.guide,
                    list(first.parameters.values()),
                    rows,
                    self.kl_weight,
                )
                draw = noise_as_inputs(graph)
            except NoiseError as error:
                raise _OneByOneError(str(error)) from error
            except Exception as error:  # whatever the user's program does that a tracer cannot follow
                reason = str(error).strip().split("\n")[0]
                raise _OneByOneError(f"{type(error).__name__}: {reason}") from error
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
            raise _OneByOneError(f"vectorizing it failed with {type(error).__name__}: {reason}") from error
        step: Callable[..., Sequence[Tensor]] = simplify(traced).forward
        return step

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
        with isolated(member.model, member.guide, state=member.state, seed=member.seed), torch.enable_grad():
            wanted = gradient_step(
                self.objective,
                member.model,
                member.guide,
                list(member.parameters.values()),
                tuple(x[i] for x in batch),
                self.kl_weight,
            )
        noise = [
            torch.stack([x] * len(self.members)) for x in draw(torch.Generator().manual_seed(member.seed))
        ]
        given = [x[i] for x in step(*self.stacks, self.kl_weight, *batch, *noise)]
        if not all(close(a, b) for a, b in zip(given, wanted, strict=True)):
            raise _OneByOneError(
                f"the vectorized step and Pyro give different numbers for seed {member.seed}"
            )

    def _write_back(self, i: int) -> None:
        with torch.no_grad():
            for parameter, stack in zip(self.members[i].parameters.values(), self.stacks, strict=True):
                parameter.copy_(stack[i])


def _stacked(epochs: list[Iterator[Batch]]) -> Iterator[Batch]:
    """The batches of all seeds, seed first."""
    for batches in zip(*epochs, strict=True):
        yield tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
