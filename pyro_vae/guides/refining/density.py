"""The density of each observation's latents at many points, with its gradient, in bounded batches.

A row is one observation at one point. Rows of any observations go through the model together, so that what
still moves is all that is computed. A batch that comes often is captured as a graph, which is replayed
without Pyro and without autograd, and without computing anew what depends on the data alone; what cannot be
traced, or does not agree with Pyro, stays with Pyro.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.graphs.any_rows import ROWS, FixedRowsError
from pyro_vae.guides.refining.captured import Captured, Graphs, Replay, capture_density, close
from pyro_vae.guides.refining.placement import evaluating, log_joint

logger = logging.getLogger(__name__)

Key = tuple[bool, *tuple[Hashable, ...]]
"""Of a graph: whether it gives the gradient, and of what."""

CHUNK = 4096
"""Rows that go through the model at once: enough for Pyro's own time to be small beside the networks', few
enough for the activations to stay near the processor."""

PATIENCE, SMALLEST_COST = 80_000, 1000
"""How many rows run in Pyro, or will for sure, before they are captured, where a batch costs as much as a
thousand rows before there is any. By then a capture would have paid for itself."""


class LocalDensity:
    r"""log p(x, z(u)) + log \|dz/du\| of observations, at any number of points u each.

    Parameters
    ----------
    model
        A Pyro model, called as ``model(*args, **kwargs)``.
    sizes
        Coordinates by latent, in the order in which they lie side by side in u.
    args, kwargs
        The observations: tensors whose first dimension is ``rows`` have a row for each, everything else is
        the same for all.
    rows
        How many observations.
    dim
        Where their plate lies.
    chunk
        How many rows go through the model at once.
    graphs
        What was captured before.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> density = LocalDensity(model, {"z": 1}, (torch.tensor([0.0, 2.0]),), {}, rows=2)
    >>> density(torch.zeros(1, 2, 1))
    tensor([[-1.8379, -3.8379]])
    >>> density.with_gradient(torch.zeros(1, 2, 1))[1]
    tensor([[[0.],
             [2.]]])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        sizes: Mapping[str, int],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        rows: int,
        dim: int = -1,
        chunk: int = CHUNK,
        graphs: Graphs | None = None,
    ) -> None:
        self.dim = dim
        self.model, self.sizes, self.rows, self.chunk = model, sizes, rows, chunk
        self.graphs = Graphs() if graphs is None else graphs
        leaves, self._structure = tree_flatten((args, dict(kwargs)))
        self._leaves = [x.detach().clone() if _is_inference(x) else x for x in leaves]
        self._by_row = [torch.is_tensor(x) and x.dim() > 0 and len(x) == rows for x in leaves]
        self._device = next((x.device for x in leaves if torch.is_tensor(x)), None)
        self._signature = (
            *sizes.items(),
            *(
                (x.shape[by_row:], x.dtype, x.device) if torch.is_tensor(x) else repr(x)
                for x, by_row in zip(self._leaves, self._by_row, strict=True)
            ),
        )
        self._own = [x for x, by_row in zip(self._leaves, self._by_row, strict=True) if by_row]
        self._shared = [
            x
            for x, by_row in zip(self._leaves, self._by_row, strict=True)
            if torch.is_tensor(x) and not by_row
        ]
        self._once: dict[Key, list[Tensor]] = {}
        self._checked: set[Key] = set()
        self._whole: Tensor | None = None

    @property
    def size(self) -> int:
        """Coordinates of one observation."""
        return sum(self.sizes.values())

    @property
    def whole(self) -> bool:
        """Whether all observations must go through together, as those of a plate of fixed size."""
        return self._whole is not None

    def __call__(self, free: Tensor, rows: Tensor | None = None) -> Tensor:
        """The density at u of shape (points, n, size) for n chosen observations, or all: (points, n)."""
        prior, likelihood = self.parts(free, rows)
        return prior + likelihood

    def parts(self, free: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""log p(z(u)) + log \|dz/du\| and log p(x|z(u)), whose sum is the density, (points, n) each."""
        prior, likelihood = self._at(free, rows, gradient=False)
        return prior, likelihood

    def with_gradient(self, free: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The density, and its gradient in u, (points, n, size)."""
        prior, likelihood, gradient = self._at(free, rows, gradient=True)
        return prior + likelihood, gradient

    def settle(self, free: Tensor) -> None:
        """Find out whether rows may go through in any number and order, by a comparison at u (rows, size).
        Raises ValueError if the model does not run on the observations, its own error being the cause; or if
        its density at the same latents changes from call to call."""
        with self._undisturbed():
            self._settle(free)

    def _settle(self, free: Tensor) -> None:
        try:
            natural = self._total(free)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            if str(error).startswith(("the model ", "latent '", "site '")):
                raise
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(
                f"the model does not run on the data with its latents at the guide's location: {reason}; "
                "give data that the model takes"
            ) from error
        some = torch.arange(min(3, self.rows), device=free.device).flip(0).repeat(2)
        try:
            packed = self._total(free[some], some)
            alone = close(packed, natural[some])
        except (ValueError, TypeError, RuntimeError, IndexError):
            alone = False
        if alone:
            return
        if not close(self._total(free), natural):
            raise ValueError(
                "the model's density changes from call to call at the same latents; fix what it draws and "
                "poutine.block hides by poutine.condition, and put modules with dropout into eval()"
            )
        self._whole = free

    def _total(self, free: Tensor, index: Tensor | None = None) -> Tensor:
        """The density by Pyro, from the random stream as it is."""
        prior, likelihood = self._run(free, *self._shared, *self._rows_of_their_own(index), gradient=False)
        return prior + likelihood

    def _at(self, free: Tensor, rows: Tensor | None, *, gradient: bool) -> list[Tensor]:
        points, n, size = free.shape
        index = torch.arange(self.rows, device=free.device) if rows is None else rows
        if self._whole is not None:
            return self._together(free, index, self._whole, gradient=gradient)
        flat, every = free.reshape(-1, size), index.repeat(points)
        parts = [
            self._batch(some, at, len(flat) - i * self.chunk, gradient=gradient)
            for i, (some, at) in enumerate(zip(flat.split(self.chunk), every.split(self.chunk), strict=True))
        ]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        return [column.reshape(points, n, *column.shape[1:]) for column in joined]

    def _together(self, free: Tensor, index: Tensor, rest: Tensor, *, gradient: bool) -> list[Tensor]:
        """One point after the other, each with all observations in the model."""
        found: list[Tensor] = []
        for which in _without_repeats(index):
            points = []
            for point in free:
                every = rest.to(point).index_copy(0, index[which], point[which])
                columns = self._by_pyro(every, None, gradient=gradient)
                points.append([column[index[which]] for column in columns])
            parts = [torch.stack(column) for column in zip(*points, strict=True)]
            found = found or [part.new_empty(len(free), len(index), *part.shape[2:]) for part in parts]
            for column, part in zip(found, parts, strict=True):
                column[:, which] = part
        return found

    def _batch(self, free: Tensor, index: Tensor, coming: int, *, gradient: bool) -> Sequence[Tensor]:
        """Some rows, where so many are coming, these among them."""
        kind = (free.dtype, free.device, self.chunk, *self._signature)
        key: Key = (gradient, *kind)
        graph = self.graphs.made.get(key)
        if graph is None:
            self.graphs.runs[kind] = self.graphs.runs.get(kind, self.graphs.ahead) + len(free) + SMALLEST_COST
            after = (coming - len(free)) * (1 + SMALLEST_COST // self.chunk)
            wanted = not self.graphs.refused and self.graphs.runs[kind] + after >= PATIENCE
        else:
            wanted = graph.rows is None or graph.rows <= len(free) + SMALLEST_COST
        if not wanted or not (key in self._checked or self._agrees(key, free, index, gradient=gradient)):
            return self._by_pyro(free, index, gradient=gradient)
        return self._replayed(key, free, index)

    @torch.no_grad()
    def _replayed(self, key: Key, free: Tensor, index: Tensor) -> Sequence[Tensor]:
        graph = self.graphs.made[key]
        if graph.once is not None and key not in self._once:
            self._once[key] = self._computed_once(graph.once, graph.rows)
        own = self._own if graph.once is None else self._once[key]
        batch, places = _filled(free, graph.rows), _filled(index, graph.rows)
        found = graph.each(batch, *self._shared, *(x.index_select(0, places.to(x.device)) for x in own))
        return [column[: len(free)] for column in found]

    def _computed_once(self, once: Replay, size: int | None) -> list[Tensor]:
        """What a graph for batches of this size, if it has one, gives for the rows of all observations."""
        parts = []
        for block in torch.arange(self.rows).split(size or self.chunk):
            rows = _filled(block, size)
            columns = once(*(x.index_select(0, rows.to(x.device)) for x in self._own))
            parts.append([column[: len(block)] for column in columns])
        return [torch.cat(columns) for columns in zip(*parts, strict=True)]

    def _by_pyro(self, free: Tensor, index: Tensor | None, *, gradient: bool) -> tuple[Tensor, ...]:
        with self._undisturbed():
            return self._run(free, *self._shared, *self._rows_of_their_own(index), gradient=gradient)

    def _rows_of_their_own(self, index: Tensor | None) -> list[Tensor]:
        return self._own if index is None else [x.index_select(0, index.to(x.device)) for x in self._own]

    def _run(self, free: Tensor, *inputs: Tensor, gradient: bool) -> tuple[Tensor, ...]:
        """The density at ``free`` of rows that have the ``inputs``: what all share, and their own."""
        shared, own = iter(inputs[: len(self._shared)]), iter(inputs[len(self._shared) :])
        leaves = [
            x if not torch.is_tensor(x) else next(own if by_row else shared)
            for x, by_row in zip(self._leaves, self._by_row, strict=True)
        ]
        args, kwargs = tree_unflatten(leaves, self._structure)
        with making_tensors_on(self._device), torch.inference_mode(False), torch.set_grad_enabled(gradient):
            at = free.detach().requires_grad_(gradient)
            by_site = dict(zip(self.sizes, at.split(list(self.sizes.values()), -1), strict=True))
            prior, likelihood = log_joint(self.model, by_site, args, kwargs, self.dim)
            if not gradient:
                return prior, likelihood
            (slope,) = torch.autograd.grad((prior + likelihood).sum(), at)
            return prior.detach(), likelihood.detach(), slope

    def _agrees(self, key: Key, free: Tensor, index: Tensor, *, gradient: bool) -> bool:
        """Whether a graph says what Pyro says at points that it was not made with; made anew if not, for any
        number of rows, and else for one."""
        wanted = self._by_pyro(free, index, gradient=gradient)
        for make in (None, self._for_any_rows, self._for_most_rows):
            if make is not None:
                try:
                    captured = make(free, index)
                except FixedRowsError:
                    continue
                except Exception as error:  # whatever the user's program does that a tracer cannot follow
                    reason = str(error).strip().split("\n")[0]
                    self._refuse(f"tracing it failed with {type(error).__name__}: {reason}")
                    return False
                for with_gradient, graph in captured.items():
                    self.graphs.made[with_gradient, *key[1:]] = graph
                    self._once.pop((with_gradient, *key[1:]), None)
            if key in self.graphs.made and self._replays(key, free, index, wanted):
                self._checked.add(key)
                return True
        self._refuse("its graph and Pyro give different numbers")
        return False

    def _replays(self, key: Key, free: Tensor, index: Tensor, wanted: Sequence[Tensor]) -> bool:
        """Whether a graph gives these numbers."""
        try:
            found = self._replayed(key, free, index)
        except RuntimeError:  # sizes that are no rows, taken for them
            return False
        return all(close(a, b) for a, b in zip(found, wanted, strict=True))

    def _for_any_rows(self, free: Tensor, index: Tensor) -> dict[bool, Captured]:
        """Graphs that are traced with another number of rows than these."""
        rows = next((n for n in ROWS if n <= self.chunk and n != len(free)), None)
        if rows is None:
            raise FixedRowsError(f"batches of {self.chunk} rows are too small")
        return self._traced(rows, free, index, any_rows=True)

    def _for_most_rows(self, free: Tensor, index: Tensor) -> dict[bool, Captured]:
        """Graphs of the largest batches, to which all others are filled up."""
        return self._traced(self.chunk, free, index, any_rows=False)

    def _traced(self, rows: int, free: Tensor, index: Tensor, *, any_rows: bool) -> dict[bool, Captured]:
        """Graphs made with so many rows, the first half of these again and again."""
        at = torch.arange(rows, device=free.device) % max(1, len(free) // 2)
        own, run = self._rows_of_their_own(index[at]), functools.partial(self._run, gradient=True)
        with self._undisturbed():
            return capture_density(run, free[at], self._shared, own, any_rows=any_rows)

    def _undisturbed(self) -> ExitStack:
        """For a block that runs the model: dropout is off, values are not checked, no stream moves."""
        stack = evaluating(self.model)
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(forked_streams())
        return stack

    def _refuse(self, reason: str) -> None:
        self.graphs.refused = True
        self.graphs.made.clear()
        logger.info("the model's density is computed by Pyro itself and not by a graph: %s", reason)


def _without_repeats(index: Tensor) -> list[Tensor]:
    """Positions in an index, in parts in which no number comes twice."""
    order = index.argsort(stable=True)
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = index[order].diff() != 0
    place = torch.arange(len(index), device=index.device)
    turn = torch.empty_like(order)
    turn[order] = place - place[begins][begins.cumsum(0) - 1]
    return [(turn == number).nonzero()[:, 0] for number in range(int(turn.max()) + 1)]


def _filled(rows: Tensor, size: int | None) -> Tensor:
    """With copies of the last one, as many as a graph takes."""
    if size is None or len(rows) == size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _is_inference(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_inference()
