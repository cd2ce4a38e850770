"""Differences between guides on the same observations and seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pyro_vae.arguments import kind
from pyro_vae.naming import OF_PAIRS, named
from pyro_vae.posterior.belief import MATERIAL_SHARE, believed

Array = NDArray[np.float64]

Diagnostics = xr.Dataset | xr.DataTree | Mapping[str, ArrayLike]
"""What :func:`~pyro_vae.posterior.importance.diagnose` or :func:`~pyro_vae.posterior.repair.ladder.repair`
returns, or arrays of the same names."""

CONFIDENCE = 0.95


def paired_differences(
    diagnostics: Mapping[str, Diagnostics | Sequence[Diagnostics]], *, shared_model: bool = False
) -> xr.Dataset:
    """Mean differences of all pairs of guides, each in both directions, with joint intervals.

    Parameters
    ----------
    diagnostics, shared_model
        As in :func:`~pyro_vae.posterior.comparison.compare`.

    Returns
    -------
    xr.Dataset
        Over ``pair`` ("a − b"), in nats per observation: ``difference`` (pair, seed), and its ``mean``,
        ``low`` and ``high``: with several seeds Student's t over the paired differences of the seeds, with
        one seed over those of the observations. The intervals hold jointly for all pairs with probability
        95% (Bonferroni). ``decided``: whether the interval excludes zero, with all observations and without
        those that are not believed. Where one of the two cannot be believed
        (:func:`~pyro_vae.posterior.comparison.compare`), ``low`` and ``high`` are NaN and nothing is decided.
        Coordinates ``first`` and ``second`` name the guides.

    Raises
    ------
    ValueError
        As :func:`~pyro_vae.posterior.comparison.compare`.

    Examples
    --------
    >>> a, b = {"log_evidence": [-1.0, -2.0, -3.0]}, {"log_evidence": [-2.0, -3.0, -4.0]}
    >>> pairs = paired_differences({"a": a, "b": b})
    >>> pairs["mean"].sel(pair="a − b").item()
    1.0
    """
    values = measured(diagnostics, shared_model=shared_model)
    good = {} if shared_model else believed_by_seed(diagnostics)  # an ELBO is a mean: it needs no weights
    names = list(permutations(values, 2))
    differences = [values[first] - values[second] for first, second in names]
    intervals = np.array([_interval(difference, len(names) // 2) for difference in differences])
    decided = (intervals[:, 0] > 0) | (intervals[:, 1] < 0)
    for i, pair in enumerate(names):
        judged = [good[name] for name in pair if name in good]
        if any((~known).mean() > MATERIAL_SHARE for known in judged):
            intervals[i], decided[i] = np.nan, False
        elif decided[i] and judged:
            sure = np.logical_and.reduce(judged).all(axis=0)
            low, high = _interval(differences[i][:, sure], len(names) // 2)
            decided[i] = low > 0 if intervals[i, 0] > 0 else high < 0
    by_seed = np.stack([difference.mean(axis=1) for difference in differences])
    found = xr.Dataset(
        {
            "difference": (("pair", "seed"), by_seed),
            "mean": ("pair", by_seed.mean(axis=1)),
            "low": ("pair", intervals[:, 0]),
            "high": ("pair", intervals[:, 1]),
            "decided": ("pair", decided),
        },
        {
            "pair": [f"{first} − {second}" for first, second in names],
            "first": ("pair", [first for first, _ in names]),
            "second": ("pair", [second for _, second in names]),
        },
        {"measure": "ELBO" if shared_model else "log evidence", "units": "nats per observation"},
    )
    return named(found, OF_PAIRS)


def measured(diagnostics: Mapping[str, Any], *, shared_model: bool = False) -> dict[str, Array]:
    """By guide, of shape (seeds, observations): log evidence, or the ELBO for a shared model."""
    measure = "elbo" if shared_model else "log_evidence"
    if not isinstance(diagnostics, Mapping) or isinstance(diagnostics, xr.Dataset):
        raise TypeError(
            f"diagnostics is {kind(diagnostics)}; give diagnostics by name of the guide, "
            "{'softplus': ..., 'logvar': ...}"
        )
    if len(diagnostics) < 2:
        raise ValueError(f"diagnostics has {len(diagnostics)} guide(s); a comparison needs at least two")
    values = {str(name): _by_seed(name, given, measure) for name, given in diagnostics.items()}
    shapes = {name: value.shape for name, value in values.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name}: {shape[0]} × {shape[1]}" for name, shape in shapes.items())
        raise ValueError(f"guides must have the same seeds and observations to be paired, but have {told}")
    if next(iter(shapes.values()))[1] < 2:
        raise ValueError("there is one observation; a comparison needs at least two")
    top = max(values.values(), key=np.mean)
    # rounding must not decide between two copies of one guide
    return {name: np.where(np.isclose(v, top, rtol=1e-9, atol=1e-9), top, v) for name, v in values.items()}


def believed_by_seed(diagnostics: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """By guide, (seeds, observations): whether the weights behind the evidence can be believed. Guides whose
    diagnostics do not say are left out."""
    known = {}
    for name, given in diagnostics.items():
        parts = []
        for fit in _fits(given):
            good = believed(fit)
            if good is not None and isinstance(fit, xr.Dataset):
                judged = fit["believable" if "believable" in fit else "khat"]
                good = judged.copy(data=good).transpose(..., "observation").values
            parts.append(None if good is None else np.atleast_2d(good))
        if parts and all(part is not None for part in parts):
            known[str(name)] = np.concatenate([part for part in parts if part is not None])
    return known


def _fits(given: Any) -> Any:
    """One mapping for each fit, of what was given for a guide; a tree of ``repair`` gives its report."""
    fits = [given] if isinstance(given, Mapping) else given
    if not isinstance(fits, Sequence):
        return fits
    return [
        fit["repair"].to_dataset() if isinstance(fit, xr.DataTree) and "repair" in fit.children else fit
        for fit in fits
    ]


def _by_seed(name: str, given: Any, measure: str) -> Array:
    fits = _fits(given)
    if not isinstance(fits, Sequence) or not all(isinstance(fit, Mapping) for fit in fits):
        raise TypeError(
            f"diagnostics of '{name}' is {kind(given)}; give what diagnose returns, a mapping "
            f"with '{measure}', or a list of such, one for each seed"
        )
    if not fits:
        raise ValueError(f"diagnostics of '{name}' is empty; give one mapping or one for each seed")
    rows = []
    for fit in fits:
        if measure not in fit:
            raise ValueError(
                f"diagnostics of '{name}' have no '{measure}'; they have {sorted(map(str, fit))}; "
                "give what diagnose returns"
            )
        value = fit[measure]
        if isinstance(value, xr.DataArray):
            value = value.transpose(..., "observation")
        try:
            rows.append(np.atleast_2d(np.asarray(value, dtype=np.float64)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{measure}' of '{name}' is not an array of numbers: {error}") from error
    sizes = {row.shape[1:] for row in rows}
    if len(sizes) > 1 or len(next(iter(sizes))) != 1:
        raise ValueError(
            f"'{measure}' of '{name}' must have shape (observation,) or (seed, observation), "
            f"with equally many observations for each seed; the shapes are {[row.shape for row in rows]}"
        )
    array = np.concatenate(rows)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"'{measure}' of '{name}' is {array[tuple(bad[0])]} for observation {bad[0][1]}, and not finite "
            f"for {len(np.unique(bad[:, 1]))} of {array.shape[1]} observations; leave these out for every "
            "guide, or refit"
        )
    return array


def _interval(difference: Array, pairs: int) -> tuple[float, float]:
    """Of the mean difference, given (seeds, observations): over seeds if there are several."""
    units = difference.mean(axis=1) if len(difference) > 1 else difference[0]
    mean, error = units.mean(), units.std(ddof=1) / np.sqrt(units.size)
    half = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * pairs), units.size - 1) * error
    return float(mean - half), float(mean + half)
