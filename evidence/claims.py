"""The five claims of the page's beginning, each with the numbers that decide it."""

from typing import Any

import numpy as np

from evidence.experiment import Results
from evidence.experiments import constraints, equivalence, real_data, truth
from evidence.statistics import interval

__all__ = ["CLAIMS", "measured"]

SMOOTH = ("logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus")


def measured(results: Results) -> dict[str, str]:
    """By claim, what was measured."""
    return {claim: numbers(results) for claim, (_, numbers) in CLAIMS.items()}


def _arbitrary(results: Results) -> str:
    table = results["equivalence"]
    matched = table[table["condition"] == "matched"]["largest"].max()
    equal = table[table["condition"] == "equal"]
    last = equal["step"].max()
    loss, low, high = interval(equal[equal["step"] == last]["elbo"])
    meeting = equivalence.meeting_step(table)
    meet = f"from step {meeting:,.0f} on" if np.isfinite(meeting) else "at no step"
    return (
        f"Matched rates: the largest difference of log σ in {last:,} steps is {matched:g}. "
        f"Equal rates: no farther apart than two orders of the batches {meet}; "
        f"held-out loss of logstd minus logvar at the end {loss:+.2f} nats ({low:+.2f} to {high:+.2f})."
    )


def _the_same_eventually(results: Results) -> str:
    found: Any = real_data.table_of_differences(results["real_data"])
    found = found[found.index.get_level_values("map").isin(SMOOTH)]
    excluded = found[["low", "high"]].abs().max(axis=1).groupby(level="data", sort=False).max()
    told = ", ".join(f"{value:.2f} on {data}" for data, value in excluded.items())
    steps: Any = truth.all_arrived(results["truth"]).groupby(["start", "map", "lr"])["steps"].median()
    middle = steps.xs(1e-2, level="lr").loc[1.0]
    there = middle[np.isfinite(middle)]
    return (
        f"Real data: differences of evidence to logvar beyond {told} (nats per observation) are excluded; "
        f"{int(found['equivalent'].sum())} of {len(found)} maps are equivalent to it within the margin. "
        f"Steps from σ = 1 to truths between 0.001 and 10 at rate 0.01: {there.min():,.0f} "
        f"({there.idxmin()}) to {there.max():,.0f} ({there.idxmax()})."
    )


def _stability(results: Results) -> str:
    table = results["robustness"]
    share: Any = table.groupby(["arithmetic", "lr", "map"])["failed"].mean()
    told = []
    for rate in sorted(table["lr"].unique()):
        if ("torch Normal", rate) not in share.index.droplevel("map"):
            continue  # left out for lack of time
        ours = share.loc["LogScaleNormal", rate].reindex(SMOOTH).dropna()
        torchs = share.loc["torch Normal", rate]
        if max(ours.max(), torchs.max()) > 0 and min(ours.min(), torchs.min()) < 1:
            told.append(f"{_range(ours)} against {_range(torchs)} at rate {rate:g}")
    return (
        "Failed fits, range over the smooth maps, with log σ from the map against torch's Normal: "
        f"{'; '.join(told) or 'no difference at any rate'}."
    )


def _range(values: Any) -> str:
    return (
        f"{values.min():.0%}" if values.min() == values.max() else f"{values.min():.0%} to {values.max():.0%}"
    )


def _direct(results: Results) -> str:
    summary: Any = constraints.by_way(results["constraints"]).xs(1.0, level="start")
    ways, maps = list(constraints.CONSTRAINED), list(constraints.MAPS)
    told = []
    for schedule in constraints.SCHEDULES:
        gap = summary.xs(schedule, level="schedule")["gap"]
        told.append(f"{gap.loc[maps].min():.1g} and {gap.loc[ways].min():.1g} at a {schedule} rate")
    constant = summary.xs("constant", level="schedule")
    early = constant.xs(1e-2, level="lr")["early_gap"]
    invalid = constant.loc["projected"]["ever_invalid"]
    dead = constant.loc[[name for name in ways if name not in ("none", "abs", "projected")]]["dead"]
    return (
        f"From σ = 1, the best final gaps over all rates, in nats, with a map and with σ as the parameter: "
        f"{'; '.join(told)}. After {constraints.EARLY:,} steps at rate 0.01: {early[maps].min():,.0f} and "
        f"{early[ways].min():.2g}. Proposed as zero or less: {_range(invalid)} of the latents over the "
        f"rates; dead at the end under clamp or multiplier: up to {dead.max():.0%}."
    )


def _needs_log(results: Results) -> str:
    table = results["precision"]
    log_q = table[(table["quantity"] == "log q") & (table["precision"] == "float32")]
    worst: Any = log_q.pivot_table(index="decade", columns="arithmetic", values="rms", aggfunc="max")
    ours, torchs = worst["LogScaleNormal"], worst["torch Normal"]
    return (
        "Error of log q of a draw in float32, rms of the worst map: with log σ from the map at most "
        f"{ours.max():.0e} nats for any σ; with the log of σ and torch's Normal {torchs.loc[-1]:.0e} near "
        f"σ = 0.1, {torchs.loc[-4]:.0e} near 1e-4, {torchs.loc[-8]:.1f} near 1e-8, not finite below 1e-23."
    )


CLAIMS = {
    "The choice between log variance and log standard deviation is arbitrary": (
        "true, up to the learning rate",
        _arbitrary,
    ),
    "Softplus is another way, and all are the same eventually": (
        "true of the end, not of the road",
        _the_same_eventually,
    ),
    "The log is for training stability": ("false: log maps fail first; knowing log σ helps", _stability),
    "Optimizing σ directly, constrained or with a Lagrange multiplier, is worse": (
        "true at a constant rate; false at first, and where the rate goes to zero",
        _direct,
    ),
    "The ELBO needs log σ": ("true, but any map can know it", _needs_log),
}
"""Each with its verdict, which is an opinion about the numbers and written by hand."""
