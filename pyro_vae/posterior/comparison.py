"""Guides side by side: which explains the data better, by how much, and whether the data decide it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from pyro_vae.arguments import kind
from pyro_vae.naming import named_columns
from pyro_vae.posterior.arguments import require_variables
from pyro_vae.posterior.belief import MATERIAL_SHARE
from pyro_vae.posterior.importance import diagnose
from pyro_vae.posterior.pairing import (
    CONFIDENCE,
    Diagnostics,
    believed_by_seed,
    measured,
    paired_differences,
)
from pyro_vae.posterior.pareto import khat_threshold

Array = NDArray[np.float64]

RANKING = ["rank", "elpd_diff", "dse", "weight", "p_worse", "diff", "diff_low", "diff_high"]
"""Columns that say who is ahead."""


def compare(
    diagnostics: Mapping[str, Diagnostics | Sequence[Diagnostics]], *, shared_model: bool = False
) -> pd.DataFrame:
    """Compare guides by the log evidence of the same observations, in pairs, where it can be believed.

    An evidence whose weights cannot be believed (k̂ above its threshold, or fewer than 25 effective draws) is
    too low by an amount that differs between guides: their difference is then one of guides, and not of
    models. So no guide is ahead where the weights of more than 5% of the observations of any guide cannot be
    believed. Up to that share the mean evidence of Gaussian guides, too narrow or too wide, in 1 to 16
    dimensions, with 100 to 10,000 draws, is off by at most 0.013 nats (``benchmarks/evidence_coverage.py``);
    and a difference then counts as decided only if it is so without these observations, too.

    Parameters
    ----------
    diagnostics
        By guide: what :func:`~pyro_vae.posterior.importance.diagnose`, :func:`~pyro_vae.refine` or
        :func:`~pyro_vae.posterior.repair.ladder.repair` returns, or any mapping with ``log_evidence`` (and
        ``elbo`` for ``shared_model``) in nats per observation, from anywhere; with ``khat`` and ``ess`` it is
        judged too. One fit has shape (observation,). Several seeds are a sequence of such, or one with shape
        (seed, observation); a Dataset may have its dimensions in any order. Seed s of every guide must belong
        together: same initial values, batches and noise.
    shared_model
        Say ``True`` if the guides approximate one and the same model. Its evidence is then one number, and
        estimates of it differ by their error only; so the ELBO is compared, and there are no stacking
        weights. Leave it ``False`` if each guide trained a model of its own.

    Returns
    -------
    pd.DataFrame
        One row per guide, best first:

        - ``rank``; ``elpd``: total nats, the mean over seeds; ``se``: its standard error over observations;
        - ``elpd_diff``: ``elpd`` minus the best guide's (≤ 0); ``dse``: standard error of that paired
          difference over observations; ``p_worse``: normal approximation from these two to the probability
          that the guide is worse than the best;
        - ``weight``: stacking weight of the guide's predictive density (Yao, Vehtari, Simpson and Gelman,
          2018, "Using stacking to average Bayesian predictive distributions");
        - ``diff``: ``elpd_diff`` in nats per observation, and its 95% interval ``diff_low`` to
          ``diff_high``. With several seeds: Student's t on the paired differences of the seeds, so it says
          how the difference varies when both guides are trained again, for these observations. With one seed
          that cannot be known; the interval is then over observations, and is about these two fits only.
          ``seeds`` says which. Which guide is best was read off the same numbers, so the intervals hold
          jointly for all pairs of guides (Bonferroni);
        - ``decided``: whether the interval excludes zero. In the first row: whether all others do;
        - ``unbelieved``: of how many observations the weights cannot be believed; missing where no k̂ is
          given. Where it exceeds 5% for any guide, ``elpd`` is a lower bound for each, guides stay in the
          order in which they were given, nothing is decided, and all that ranks them is NaN.

        Few seeds cannot exclude failures that are rare: n fits without one leave a rate of up to
        1 − 0.05^(1/n) possible, 63% for three. :func:`answer` says over how many it speaks.

    Raises
    ------
    ValueError
        If there are fewer than two guides or observations, if numbers of observations or seeds differ, or if
        a value is not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> images = rng.normal(-100, 10, size=(1, 200))  # some are harder than others, for both guides
    >>> a, b = images + rng.normal(0, 0.1, (3, 200)), images - 1 + rng.normal(0, 0.1, (3, 200))
    >>> table = compare({"softplus": {"log_evidence": a}, "logvar": {"log_evidence": b}})
    >>> table[["rank", "diff", "decided"]].round(1)
              rank  diff  decided
    guide
    softplus     0   0.0     True
    logvar       1  -1.0     True
    """
    diagnostics = _diagnosed(diagnostics)
    values = measured(diagnostics, shared_model=shared_model)
    pairs = paired_differences(diagnostics, shared_model=shared_model)
    seeds, n = next(iter(values.values())).shape
    table = _arviz_table({name: value.mean(axis=0) for name, value in values.items()})
    if shared_model:
        table = table.drop(columns="weight")
    best, *others = table.index
    found = [pairs.sel(pair=f"{name} − {best}") for name in others]
    table["diff"] = table["elpd_diff"] / n
    table["diff_low"] = [np.nan, *(float(pair["low"]) for pair in found)]
    table["diff_high"] = [np.nan, *(float(pair["high"]) for pair in found)]
    decided = [bool(pair["decided"]) for pair in found]
    table["decided"] = [all(decided), *decided]
    table["seeds"] = seeds
    good = {} if shared_model else believed_by_seed(diagnostics)
    if good:
        table["unbelieved"] = [
            float((~good[name]).mean()) if name in good else np.nan for name in table.index
        ]
        if (table["unbelieved"] > MATERIAL_SHARE).any():
            table[RANKING], table["decided"] = np.nan, False
            table = table.loc[list(values)]
    return named_columns(table)


def _diagnosed(diagnostics: Any) -> Any:
    """With what :func:`~pyro_vae.refine` returned diagnosed on the data that it was made for."""
    if not isinstance(diagnostics, Mapping) or isinstance(diagnostics, xr.Dataset):
        return diagnostics  # refused further on

    def one(given: Any) -> Any:
        own = isinstance(given, nn.Module) and hasattr(given, "data") and hasattr(given, "model")
        return diagnose(given.model, given, given.data) if own else given

    return {
        name: [one(fit) for fit in given] if isinstance(given, list | tuple) else one(given)
        for name, given in diagnostics.items()
    }


def answer(comparison: pd.DataFrame) -> str:
    """What a comparison says: which guide is better and by how much, or that the data do not decide.

    Parameters
    ----------
    comparison
        From :func:`compare`.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(0, 1, (2, 3, 100))
    >>> table = compare({"a": {"log_evidence": noise[0]}, "b": {"log_evidence": noise[1]}})
    >>> print(answer(table))
    The data do not decide between b and a: in log evidence b is ahead of a by 0.026 nats per observation
    (95% interval -0.302 to 0.354 over 3 seeds), and that interval contains zero. No k̂ was given, so whether
    this evidence can be believed is not known. With 3 fits of each guide, a fault that strikes up to 63% of
    its fits can go unseen.
    """
    if not isinstance(comparison, pd.DataFrame):
        raise TypeError(f"comparison is {kind(comparison)}; give what compare returns")
    missing = [column for column in ("seeds", "diff", "decided") if column not in comparison]
    if missing or len(comparison) < 2:
        told = f"no column {missing[0]!r}" if missing else f"{len(comparison)} rows"
        raise ValueError(f"comparison has {told}; give what compare returns")
    if "unbelieved" in comparison and (comparison["unbelieved"] > MATERIAL_SHARE).any():
        return _bounds_alone(comparison)
    best, rest = str(comparison.index[0]), comparison.iloc[1:]
    measure = "log evidence" if "weight" in comparison else "ELBO"
    seeds = int(comparison["seeds"].iloc[0])
    over = f"over {seeds} seeds" if seeds > 1 else "over observations"
    better, open_ = rest[rest["decided"]], rest[~rest["decided"]]
    sentences = []
    if len(better):
        gains = _listed([f"{name} by {_gain(row, over)}" for name, row in better.iterrows()])
        sentences.append(f"{best} has the higher {measure}: it beats {gains}.")
    if len(open_):
        names = [best, *map(str, open_.index)]
        leads = _listed([f"of {name} by {_gain(row, over)}" for name, row in open_.iterrows()])
        lead = "The data do not decide between" if not sentences else "Between"
        verdict = "" if not sentences else " the data do not decide"
        sentences.append(
            f"{lead} {_listed(names)}{verdict}: in {measure} {best} is ahead {leads}, "
            f"and {'that interval contains' if len(open_) == 1 else 'these intervals contain'} zero."
        )
    if "weight" in comparison and ("unbelieved" not in comparison or comparison["unbelieved"].isna().any()):
        sentences.append("No k̂ was given, so whether this evidence can be believed is not known.")
    sentences.append(_over_fits(seeds))
    return " ".join(sentences)


def _bounds_alone(comparison: pd.DataFrame) -> str:
    """What can be said where evidence cannot be believed: bounds, whose they are, and what to run."""
    shares = comparison["unbelieved"]
    bad = shares[shares > MATERIAL_SHARE]
    blamed = _listed([f"{share:.0%} of the observations of {name}" for name, share in bad.items()])
    bounds = _listed([f"{row['elpd']:.1f} for {name}" for name, row in comparison.iterrows()])
    return (
        f"No guide is ahead: the weights of {blamed} cannot be believed (k̂ is bad, or too few draws are "
        "effective), so evidence is too low there by amounts that differ between guides. Lower bounds of the "
        f"log evidence, in nats for all observations: {bounds}. Run refine(model, guide, data) for each "
        "guide and compare what it returns, or repair(model, guide, data) where that is not enough; if the "
        "guides share one model, compare their ELBO by shared_model=True."
    )


def _over_fits(seeds: int) -> str:
    if seeds == 1:
        return "Each guide was fitted once, so this is about these fits and not about the guides."
    unseen = 1 - (1 - CONFIDENCE) ** (1 / seeds)
    return (
        f"With {seeds} fits of each guide, a fault that strikes up to {unseen:.0%} of its fits can go unseen."
    )


def _gain(row: pd.Series, over: str) -> str:
    """The best guide's lead over another, with its interval."""
    lead, low, high = -row["diff"], -row["diff_high"], -row["diff_low"]
    digits = max(2, 1 - int(np.floor(np.log10(max(abs(lead), 1e-6)))))
    return (
        f"{lead:.{digits}f} nats per observation "
        f"({CONFIDENCE:.0%} interval {low:.{digits}f} to {high:.{digits}f} {over})"
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def to_elpd(diagnostics: xr.Dataset) -> Any:
    """The log evidence of one fit as ArviZ's ``ELPDData``, for example for ``arviz_plots.plot_khat``.

    Parameters
    ----------
    diagnostics
        From :func:`~pyro_vae.posterior.importance.diagnose`, of one seed.

    Examples
    --------
    >>> values = {"log_evidence": ("observation", [-1.0, -2.0]), "khat": ("observation", [0.1, 0.9])}
    >>> elpd = to_elpd(xr.Dataset(values, attrs={"draws": 1000}))
    >>> elpd.elpd, elpd.warning
    (-3.0, True)
    """
    require_variables("diagnostics", diagnostics, "diagnose", "log_evidence", "khat", "draws")
    return _elpd(diagnostics["log_evidence"], diagnostics["khat"], int(diagnostics.attrs["draws"]))


def _elpd(values: xr.DataArray, khat: xr.DataArray | None = None, draws: int = 10_000) -> Any:
    import arviz_stats

    threshold = khat_threshold(draws)
    fields = inspect.signature(arviz_stats.ELPDData).parameters
    arviz: Any = arviz_stats  # untyped in part
    return arviz.ELPDData(
        **({"kind": "loo"} if "kind" in fields else {}),  # required up to arviz-stats 1.3.2, then forbidden
        elpd=float(values.sum()),
        se=float(np.sqrt(values.size) * values.std(ddof=1)),
        p=np.nan,  # an effective number of parameters has no meaning here
        n_samples=draws,
        n_data_points=values.size,
        scale="log",
        warning=khat is not None and bool((khat > threshold).any()),
        good_k=threshold,
        elpd_i=values,
        pareto_k=khat,
    )


def _arviz_table(values: Mapping[str, Array]) -> pd.DataFrame:
    """ArviZ's comparison of pointwise log densities (observation,), the same on all its versions."""
    import arviz_stats

    arviz: Any = arviz_stats  # untyped in part
    n = next(iter(values.values())).size
    # stacking takes exp(elpd): without the shift everything below -745 nats is zero and the weights are
    # silently equal
    top = np.max(list(values.values()), axis=0)
    shifted = {name: _elpd(xr.DataArray(value - top, dims="observation")) for name, value in values.items()}
    exact = {"round_to": "none"} if "round_to" in inspect.signature(arviz.compare).parameters else {}
    table = arviz.compare(shifted, method="stacking", **exact)
    names = [str(name) for name in table.index]
    out = pd.DataFrame(index=pd.Index(names, name="guide"))
    out["rank"] = table["rank"].to_numpy(dtype=int)
    out["elpd"] = [float(values[name].sum()) for name in names]
    out["se"] = [float(np.sqrt(n) * values[name].std(ddof=1)) for name in names]
    out["elpd_diff"] = 0.0 - table["elpd_diff"].abs().to_numpy(dtype=float)  # the sign depends on the version
    out["dse"] = table["dse"].to_numpy(dtype=float)
    out["weight"] = table["weight"].to_numpy(dtype=float)
    out["p_worse"] = stats.norm.cdf(-out["elpd_diff"] / out["dse"].where(out["dse"] > 0))
    return out
