"""The density of each observation's latents at many points, with its gradient, in bounded batches.

A row is one observation at one point. Rows of any observations go through the model together, so that what
still moves is all that is computed. A batch that comes often is captured as a graph, which is replayed
without Pyro and without autograd, and without computing anew what depends on the data alone; what cannot be
traced, or does not agree with Pyro, stays with Pyro.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.devices import forked_streams, making_tensors_on
from pyro_vae.guides.refining.captured import Captured, Graphs, Replay, capture_density, close
from pyro_vae.guides.refining.placement import evaluating, log_joint

logger = logging.getLogger(__name__)

CHUNK = 4096
"""Rows that go through the model at once: enough for Pyro's own time to be small beside the networks', few
enough for the activations to stay near the processor."""

SMALLEST_BATCH = 256
"""Graphs are made for CHUNK rows, half of it, and so on; a batch between two is filled up."""

PATIENCE, SMALLEST_COST = 40_000, 1000
"""How many rows run in Pyro before a batch of their size is captured, where a batch costs as much as a
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
        self._once: dict[Hashable, list[Tensor]] = {}
        self._checked: set[Hashable] = set()
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
        density, gradient = self._at(free, rows, gradient=True)
        return density, gradient

    def settle(self, free: Tensor) -> None:
        """Find out whether rows may go through in any number and order, by a comparison at u (rows, size).
        Raises ValueError if the model does not run on the observations, its own error being the cause; or if
        its density at the same latents changes from call to call."""
        with evaluating(self.model), pyro.validation_enabled(False):
            self._settle(free)

    def _settle(self, free: Tensor) -> None:
        try:
            natural = torch.stack(self._by_pyro(free, None, gradient=False)).sum(0)
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
            packed = torch.stack(self._by_pyro(free[some], some, gradient=False)).sum(0)
            alone = close(packed, natural[some])
        except (ValueError, TypeError, RuntimeError, IndexError):
            alone = False
        if alone:
            return
        if not close(torch.stack(self._by_pyro(free, None, gradient=False)).sum(0), natural):
            raise ValueError(
                "the model's density changes from call to call at the same latents; fix what it draws and "
                "poutine.block hides by poutine.condition, and put modules with dropout into eval()"
            )
        self._whole = free

    def _at(self, free: Tensor, rows: Tensor | None, *, gradient: bool) -> list[Tensor]:
        points, n, size = free.shape
        index = torch.arange(self.rows, device=free.device) if rows is None else rows
        with evaluating(self.model), pyro.validation_enabled(False), forked_streams():
            if self._whole is not None:
                return self._together(free, index, self._whole, gradient=gradient)
            flat, every = free.reshape(-1, size), index.repeat(points)
            parts = [
                self._batch(flat[i : i + self.chunk], every[i : i + self.chunk], gradient=gradient)
                for i in range(0, len(flat), self.chunk)
            ]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        return [column.reshape(points, n, *column.shape[1:]) for column in joined]

    def _together(self, free: Tensor, index: Tensor, rest: Tensor, *, gradient: bool) -> list[Tensor]:
        """One point after the other, each with all observations in the model."""
        points = []
        for point in free:
            every = rest.to(point).index_copy(0, index, point)
            points.append([column[index] for column in self._by_pyro(every, None, gradient=gradient)])
        return [torch.stack(column) for column in zip(*points, strict=True)]

    def _batch(self, free: Tensor, index: Tensor, *, gradient: bool) -> Sequence[Tensor]:
        filled, key = self._graph_for(len(free), (gradient, free.dtype, free.device, *self._signature))
        if key not in self.graphs.made:
            runs = self.graphs.runs[key] = self.graphs.runs.get(key, 0) + 1
            if self.graphs.refused or runs * (filled + SMALLEST_COST) < PATIENCE:
                return self._by_pyro(free, index, gradient=gradient)
        missing = filled - len(free)
        batch = torch.cat([free, free[-1:].expand(missing, -1)]) if missing else free
        places = torch.cat([index, index[-1:].expand(missing)]) if missing else index
        if key not in self._checked and not self._agrees(key, batch, places, gradient=gradient):
            return self._by_pyro(free, index, gradient=gradient)
        return [column[: len(free)] for column in self._replayed(key, batch, places)]

    @torch.no_grad()
    def _replayed(self, key: Hashable, batch: Tensor, places: Tensor) -> Sequence[Tensor]:
        once, each = self.graphs.made[key]
        if once is not None and key not in self._once:
            self._once[key] = self._computed_once(once, len(batch))
        own = self._own if once is None else self._once[key]
        return each(batch, *self._shared, *(x.index_select(0, places.to(x.device)) for x in own))

    def _computed_once(self, once: Replay, size: int) -> list[Tensor]:
        """What a graph for batches of this size gives for the rows of all observations."""
        every, parts = torch.arange(self.rows), []
        for block in every.split(size):
            filled = torch.cat([block, block[-1:].expand(size - len(block))])
            columns = once(*(x.index_select(0, filled.to(x.device)) for x in self._own))
            parts.append([column[: len(block)] for column in columns])
        return [torch.cat(columns) for columns in zip(*parts, strict=True)]

    def _graph_for(self, rows: int, kind: tuple[Hashable, ...]) -> tuple[int, Hashable]:
        """The size that a batch is filled up to, and its graph's key: the smallest, or a larger one of which
        there is a graph, if that costs less than Pyro."""
        sizes = [self.chunk]
        while sizes[-1] // 2 >= max(rows, SMALLEST_BATCH):
            sizes.append(sizes[-1] // 2)
        smallest = sizes[-1]
        affordable = (size for size in reversed(sizes) if size <= smallest + SMALLEST_COST)
        size = next((size for size in affordable if (size, *kind) in self.graphs.made), smallest)
        return size, (size, *kind)

    def _by_pyro(self, free: Tensor, index: Tensor | None, *, gradient: bool) -> tuple[Tensor, ...]:
        own = self._own if index is None else [x.index_select(0, index.to(x.device)) for x in self._own]
        return self._run(free, *self._shared, *own, gradient=gradient)

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
            density = prior + likelihood
            (slope,) = torch.autograd.grad(density.sum(), at)
            return density.detach(), slope

    def _agrees(self, key: Hashable, batch: Tensor, places: Tensor, *, gradient: bool) -> bool:
        """Whether a graph says what Pyro says at points that it was not made with; made anew once if not."""
        wanted = self._by_pyro(batch, places, gradient=gradient)
        for known in (True, False):
            if not known or key not in self.graphs.made:
                try:
                    self.graphs.made[key] = self._captured(batch, places, gradient=gradient)
                except Exception as error:  # whatever the user's program does that a tracer cannot follow
                    reason = str(error).strip().split("\n")[0]
                    self._refuse(f"tracing it failed with {type(error).__name__}: {reason}")
                    return False
                self._once.pop(key, None)
            if all(close(a, b) for a, b in zip(self._replayed(key, batch, places), wanted, strict=True)):
                self._checked.add(key)
                return True
        self._refuse("its graph and Pyro give different numbers")
        return False

    def _captured(self, batch: Tensor, places: Tensor, *, gradient: bool) -> Captured:
        """A graph made with the first half of these rows, twice."""
        half = torch.arange(len(batch), device=batch.device) % (len(batch) // 2)
        own = [x.index_select(0, places[half].to(x.device)) for x in self._own]
        run = functools.partial(self._run, gradient=gradient)
        return capture_density(run, batch[half], self._shared, own)

    def _refuse(self, reason: str) -> None:
        self.graphs.refused = True
        self.graphs.made.clear()
        logger.info("the model's density is computed by Pyro itself and not by a graph: %s", reason)


def _is_inference(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_inference()
