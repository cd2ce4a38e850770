"""Data that cannot come from the distribution that observes them: told by value, row and remedy."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.arguments import brief

SHRINK = (
    "squeeze them inside, by x * (n - 1) / n + 0.5 / n for n rows (Smithson and Verkuilen, 2006), or drop "
    "such rows"
)


class Observed(NamedTuple):
    """A sample site that observes a part of the data as it is, or a slice of it.

    What is found on one batch holds for the others, so that a whole data set can be looked at without a run
    of the model.
    """

    name: str
    distribution: Any
    part: int
    """Of the data: which argument of the programs."""
    shape: torch.Size
    """Of one observation."""
    strides: tuple[int, ...]
    offset: int
    several: bool
    """Whether the data have several parts."""

    def refuse_impossible(self, part: Tensor, name: str, *, start: int = 0) -> None:
        """Raise a ValueError if a row of that part of the data has no density; its first is row ``start``."""
        part = part.contiguous()
        rows = part.as_strided(
            (len(part), *self.shape), self.strides, int(part.storage_offset()) + self.offset
        )
        label = f"{name}[{self.part}]" if self.several else name
        _refuse(self.name, self.distribution, rows, label, start, fixed=True)


def observed_parts(trace: Trace, batch: tuple[Tensor, ...]) -> Iterator[Observed]:
    """The observed sites of a model's trace whose values lie in the memory of a batch that it ran on."""
    for name, site in _observing(trace):
        value = site["value"]
        for i, part in enumerate(batch):
            if value.dim() == 0 or not part.dim() or len(value) != len(part) or not part.is_contiguous():
                continue
            offset = int(value.storage_offset() - part.storage_offset())
            inside = value.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
            if inside and value.stride(0) == part.stride(0) and 0 <= offset < max(part.stride(0), 1):
                strides = tuple(value.stride())
                yield Observed(name, site["fn"], i, value.shape[1:], strides, offset, len(batch) > 1)
                break


def refuse_impossible(trace: Trace, name: str, *, fixed: bool = False) -> None:
    """Raise a ValueError if an observed value of a trace has no density, naming value, row and remedy.

    Parameters
    ----------
    trace
        Of the model on a batch.
    name
        What a sentence calls the data.
    fixed
        Look at supports alone that are the same whatever the latents are.
    """
    for site_name, site in _observing(trace):
        _refuse(site_name, site["fn"], site["value"], name, fixed=fixed)


def refuse_other_shape(trace: Trace, name: str) -> None:
    """Raise a ValueError if an observed value of a trace does not suit the plates around it, naming these."""
    for site_name, site in _observing(trace):
        value, expected = tuple(site["value"].shape), tuple(site["fn"].shape())
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if not frames or _broadcast(value, expected):
            continue
        plates = " and ".join(
            f"{frame.name!r} of size {frame.size} at dim {frame.dim}"
            for frame in sorted(frames, key=lambda frame: frame.dim)
        )
        turned = len(value) == 2 and value[0] == expected[-1] != value[1]
        other = f"{name}.T, if its rows are what the model has in columns; or " if turned else ""
        raise ValueError(
            f"site {site_name!r} observes values of shape {value}, and its plates, {plates}, make them "
            f"{expected}; give {other}{name} and plates of one size in each dim"
        )


def _broadcast(value: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a distribution of a shape takes a value of another."""
    pairs = zip(reversed(value), reversed(expected), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _observing(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Sites that may be looked at: what is masked may hold anything, and so may what a user has told torch
    not to validate (``validate_args=False``, as for intensities under a Bernoulli)."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or not isinstance(site["value"], Tensor):
            continue
        layers = list(_layers(site["fn"]))
        masked = site["mask"] is not None or any(isinstance(d, dist.MaskedDistribution) for d in layers)
        unchecked = any(vars(layer).get("_validate_args") is False for layer in layers)
        if not masked and not unchecked:
            yield name, site


def _layers(distribution: Any) -> Iterator[Any]:
    yield distribution
    while isinstance(distribution, torch.distributions.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
        yield distribution


def _refuse(
    site: str, distribution: Any, value: Tensor, name: str, start: int = 0, *, fixed: bool = False
) -> None:
    *_, base = _layers(distribution)
    kind = type(base).__name__
    for needs, remedy, possible in _rules(base, fixed):
        try:
            bad = ~possible(value)
        except RuntimeError:  # of another shape than the distribution, which is told elsewhere
            continue
        if not bool(bad.any()):
            continue
        where = tuple(int(i) for i in bad.nonzero()[0])
        one = value[where] if len(where) <= value.dim() else value.flatten()[0]
        held = f"{one.item():g}" if one.numel() == 1 else brief([round(v, 4) for v in one.flatten().tolist()])
        raise ValueError(
            f"{name} holds {held}{_place(where, start)}, where the {kind} of site {site!r} has no density: "
            f"it needs {needs}; {remedy}"
        )


def _place(where: tuple[int, ...], start: int) -> str:
    if not where:
        return ""
    row, *rest = where
    column = f", column {rest[0]}" if len(rest) == 1 else f", position {tuple(rest)}" if rest else ""
    return f" in row {start + row}{column}"


Rule = tuple[str, str, Callable[[Tensor], Tensor]]
"""What values must be, in words; what to do about those that are not; and which are."""

OTHERS = "give data that lie there, or another distribution"


def _rules(base: Any, fixed: bool) -> Iterator[Rule]:
    """What a distribution asks of its values; with ``fixed`` that which it asks of any batch."""
    open_ends = _open_ends(base)
    if open_ends is not None:
        yield open_ends
    try:
        support = base.support
    except (NotImplementedError, ValueError, AttributeError):
        return
    if support is None or support is constraints.real or (fixed and not _is_fixed(support)):
        return  # that data are finite was seen when they were read
    simplex = isinstance(support, type(constraints.simplex))
    yield in_words(support), OTHERS, _adds_up if simplex else support.check


def _open_ends(base: Any) -> Rule | None:
    """Of densities that are 0 or infinite at an end of their support, which torch takes for a part of it."""

    def is_one(parameter: Tensor) -> bool:
        return bool((parameter == 1).all())

    if isinstance(base, dist.Beta):
        low, high = is_one(base.concentration1), is_one(base.concentration0)
        if low and high:
            return None
        words = "values above 0" if high else "values below 1" if low else "values strictly between 0 and 1"
        return words, SHRINK, lambda x: ((x > 0) | low) & ((x < 1) | high)
    if isinstance(base, dist.Dirichlet) and not is_one(base.concentration):
        return "shares above 0", SHRINK.replace("n rows", "n columns"), lambda x: (x > 0).all(-1)
    if isinstance(base, dist.Gamma) and not is_one(base.concentration):
        remedy = "drop such rows, or give a distribution that has mass at 0"
        return "values above 0", remedy, lambda x: x > 0
    return None


def _adds_up(x: Tensor) -> Tensor:
    """Whether shares are a simplex to three digits: torch asks for six, which shares in float32 have not."""
    return ((x >= 0).all(-1)) & ((x.sum(-1) - 1).abs() < 1e-3)


def _is_fixed(support: Any) -> bool:
    """Whether a support is the same for all rows of all batches and for all latents, as far as can be seen
    from one run: counts up to one number are, bounds that are any numbers may be a latent's."""
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    tensors = [bound for bound in bounds if isinstance(bound, Tensor)]
    whole = "Integer" in type(support).__name__
    return all(whole and not bound.requires_grad and not any(bound.stride()) for bound in tensors)


def in_words(support: Any) -> str:
    """What a constraint asks of values.

    >>> in_words(constraints.nonnegative_integer), in_words(constraints.interval(-1.0, 2.0))
    ('whole numbers of at least 0', 'values from -1 to 2')
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    kind = type(support).__name__.strip("_")
    low, high = (_number(getattr(support, name, None)) for name in ("lower_bound", "upper_bound"))
    whole = "whole numbers" if kind.startswith("Integer") else "values"
    words = {
        "Boolean": "0 or 1",
        "Interval": f"{whole} from {low} to {high}",
        "HalfOpenInterval": f"{whole} from {low} to below {high}",
        "IntegerInterval": f"{whole} from {low} to {high}",
        "GreaterThan": f"{whole} above {low}",
        "GreaterThanEq": f"{whole} of at least {low}",
        "IntegerGreaterThan": f"{whole} of at least {low}",
        "LessThan": f"{whole} below {high}",
        "Simplex": "shares that are not negative and add up to 1",
        "OneHot": "a 1 among zeros",
        "Real": "numbers",
    }
    return f"{whole} within its bounds" if None in (low, high) else words.get(kind, f"what is {kind}")


def _number(bound: Any) -> str | None:
    """A bound as text; None if each value has one of its own."""
    if bound is None:
        return ""
    if not isinstance(bound, Tensor):
        return f"{bound:g}"
    same = bool((bound == bound.flatten()[0]).all())
    return f"{bound.flatten()[0].item():g}" if same else None
