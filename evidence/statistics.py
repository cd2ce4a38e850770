"""Intervals as :func:`pyro_vae.compare` has them: paired over seeds, joint over all comparisons."""

import numpy as np
import pandas as pd
from scipy import stats

__all__ = ["differences", "interval"]

CONFIDENCE = 0.95


def interval(values: "pd.Series[float]", comparisons: int = 1) -> tuple[float, float, float]:
    """Mean, and Student's interval over seeds that holds jointly for so many comparisons (Bonferroni).

    >>> low_to_high = interval(pd.Series([1.0, 2.0, 3.0]))
    >>> [round(value, 1) for value in low_to_high]
    [2.0, -0.5, 4.5]
    """
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), len(values) - 1) * error
    return float(mean), float(mean - half), float(mean + half)


def differences(table: pd.DataFrame, value: str, reference: str = "logvar") -> pd.DataFrame:
    """By map, the paired difference of ``value`` to the reference map over the seeds that both have.

    Parameters
    ----------
    table
        With the columns ``map``, ``seed`` and ``value``, one row for each fit.

    Returns
    -------
    pd.DataFrame
        Indexed by map: ``difference``, ``low``, ``high``, ``seeds`` and ``decided``, whether the interval
        excludes zero.
    """
    by_seed = table.pivot(index="seed", columns="map", values=value)
    others = [str(name) for name in by_seed.columns if name != reference]
    rows = {}
    for name in others:
        paired = (by_seed[name] - by_seed[reference]).dropna()
        mean, low, high = interval(paired, len(others))
        decided = bool(low > 0 or high < 0)
        rows[name] = {"difference": mean, "low": low, "high": high, "seeds": len(paired), "decided": decided}
    return pd.DataFrame.from_dict(rows, orient="index")
