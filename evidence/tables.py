"""The tables of docs/why_log_variance.md, made from evidence/results/, so that the page cannot drift.

python -m evidence.tables    # writes them into the page
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evidence import claims
from evidence.experiment import Results
from evidence.experiments import (
    constraints,
    equivalence,
    mechanism,
    precision,
    published,
    real_data,
    truth,
)
from evidence.statistics import differences, interval

__all__ = ["PAGE", "TABLES", "read_results", "with_tables", "write_page"]

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "why_log_variance.md"
EARLY_RATE = 1e-2
LONG = "long"
"""The runs of :mod:`evidence.long`, which are no experiment: hours, made where there is time."""
BLOCK = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_results(folder: Path = HERE / "results") -> dict[str, pd.DataFrame]:
    """The tables of a folder by the name of their experiment."""
    return {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}


def write_page() -> None:
    """Writes every table into the page, between its marks."""
    PAGE.write_text(with_tables(PAGE.read_text(), read_results()))


def with_tables(text: str, results: Results) -> str:
    """A page with what stands between ``<!-- evidence: NAME -->`` and ``<!-- end -->`` made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}{found[3]}", text)


def _markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _whole(value: float) -> str:
    """A number of steps."""
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def _small(value: float) -> str:
    """Two digits, as people write them."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(0, 1 - int(np.floor(np.log10(abs(value)))))}f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _signed(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _share(value: float) -> str:
    return f"{value:.0%}"


def equivalence_table(results: Results) -> str:
    """Distance of log σ by condition and step."""
    table = results["equivalence"]
    steps = sorted(table["step"].unique())
    shown = [steps[0], *(min(steps, key=lambda step: abs(step - near)) for near in (50, 200, 600)), steps[-1]]
    shown = list(dict.fromkeys(shown))
    rows = []
    for condition, label in equivalence.LABELS.items():
        part = table[table["condition"] == condition]
        mean = part.groupby("step")["rms"].mean()
        last = part[part["step"] == steps[-1]]
        rows.append([label, *(_small(mean[step]) for step in shown), _signed(*interval(last["elbo"]))])
    header = ["rms difference of log σ", *(f"step {step:,}" for step in shown), "loss at the end, difference"]
    meeting = equivalence.meeting_step(table)
    met = f"from step {meeting:,.0f} on" if np.isfinite(meeting) else "at no step"
    return _markdown(header, rows) + f"\nEqual rates are within what another order of the data does {met}.\n"


def truth_table(results: Results) -> str:
    """Median steps until all five σ have arrived."""
    arrived = truth.all_arrived(results["truth"])
    median = arrived.groupby(["start", "map", "lr"], sort=False)["steps"].median()
    parts = []
    for start in truth.STARTS:
        header = [f"from σ = {start:g}", *(f"rate {rate:g}" for rate in truth.RATES)]
        rows = [
            [f"`{name}`", *(_whole(median[start, name, rate]) for rate in truth.RATES)]
            for name in truth.MAPS
            if (start, name) in median.index
        ]
        parts.append(_markdown(header, rows))
    return "\n".join(parts)


def robustness_table(results: Results) -> str:
    """Share of failed fits by rate."""
    table = results["robustness"]
    rates = sorted(table["lr"].unique())
    rows = []
    for (arithmetic, name), fits in table.groupby(["arithmetic", "map"], sort=False):
        share = fits.groupby("lr")["failed"].mean()
        rows.append([f"`{name}`", arithmetic, *(_share(share[r]) if r in share else "" for r in rates)])
    return _markdown(["failed fits", "arithmetic", *(f"rate {rate:g}" for rate in rates)], rows)


def best_rate(table: pd.DataFrame) -> pd.DataFrame:
    """The library's fits of each map at the rate whose mean evidence is highest, among rates where none
    failed."""
    ours = table[table["arithmetic"] == "LogScaleNormal"]
    by_rate = ours.groupby(["map", "lr"]).agg(evidence=("evidence", "mean"), failed=("failed", "sum"))
    best = by_rate[by_rate["failed"] == 0]["evidence"].groupby("map").idxmax()
    keys = set(best)
    return ours[[(name, rate) in keys for name, rate in zip(ours["map"], ours["lr"], strict=True)]]


def robustness_best_table(results: Results) -> str:
    """Evidence at each map's best rate."""
    best = best_rate(results["robustness"])
    found: Any = differences(best, "evidence")
    rows = []
    for name, fits in best.groupby("map", sort=False):
        line = found.loc[str(name)] if name in found.index else None
        told = "" if line is None else _signed(line["difference"], line["low"], line["high"])
        decided = "" if line is None else "yes" if line["decided"] else "no"
        evidence = f"{fits['evidence'].mean():.1f}"
        rows.append(
            [f"`{name}`", f"{fits['lr'].iloc[0]:g}", evidence, _share(fits["khat_bad"].mean()), told, decided]
        )
    header = ["map", "best rate", "evidence", "k̂ bad", "difference to `logvar`", "decided"]
    return _markdown(header, rows)


def precision_table(results: Results) -> str:
    """Bias and spread of log q, and error of the gradient, over maps."""
    table = results["precision"]
    decades = (-20, -8, -6, -4, -3, -2, -1)
    rows = []
    for quantity, column in (
        ("log q", "bias"),
        ("log q", "sd"),
        ("ELBO", "sd"),
        ("gradient, analytic KL", "sd"),
    ):
        for precise in precision.PRECISIONS:
            for arithmetic in precision.ARITHMETICS:
                part = table[
                    (table["quantity"] == quantity)
                    & (table["precision"] == precise)
                    & (table["arithmetic"] == arithmetic)
                ]
                cells = []
                for decade in decades:
                    here: Any = part[part["decade"] == decade]
                    worst = here.loc[here[column].abs().fillna(-1).idxmax(), column]
                    lost = here["nonfinite"].max()
                    cells.append(f"not finite {_share(lost)}" if lost > 0.005 else _small(float(worst)))
                rows.append(
                    [f"{quantity}, {'bias' if column == 'bias' else 'sd'}", precise, arithmetic, *cells]
                )
    header = ["error, worst map", "precision", "arithmetic", *(f"σ = 1e{d}" for d in decades)]
    return _markdown(header, rows)


def constraints_table(results: Results) -> str:
    """Final gap, and latents lost."""
    summary: Any = constraints.by_way(results["constraints"])
    ways = (*constraints.MAPS, *constraints.CONSTRAINED)
    return "\n".join(
        _gaps_and_losses(
            summary.xs((start, schedule), level=("start", "schedule")), ways, f"σ = {start:g}, {schedule}"
        )
        for schedule in constraints.SCHEDULES
        for start in truth.STARTS
    )


def _gaps_and_losses(summary: Any, ways: Iterable[str], title: str) -> str:
    header = [f"from {title}", *(f"rate {rate:g}" for rate in constraints.RATES)]
    header += [f"after {constraints.EARLY:,} steps, rate {EARLY_RATE:g}", "σ ≤ 0 proposed, same rate"]
    rows = []
    for name in ways:
        if name not in summary.index:
            continue  # left out for lack of time
        cells = []
        for rate in constraints.RATES:
            line = summary.loc[name, rate]
            dead = f" ({_share(line['dead'])} dead)" if line["dead"] > 0 else ""
            cells.append(_small(line["gap"]) + dead)
        line = summary.loc[name, EARLY_RATE]
        proposed = _share(line["ever_invalid"]) if line["ever_invalid"] > 0 else ""
        rows.append([f"`{name}`", *cells, _small(line["early_gap"]), proposed])
    return _markdown(header, rows)


def real_data_table(results: Results) -> str:
    """Paired differences, what they exclude, and what the encoder lacks."""
    table = results["real_data"]
    found: Any = real_data.table_of_differences(table)
    rows = []
    for (data, name), fits in table.groupby(["data", "map"], sort=False):
        mean = fits.mean(numeric_only=True)
        told, within = "", ""
        if (data, name) in found.index:
            line = found.loc[(data, name)]
            told = _signed(line["difference"], line["low"], line["high"])
            within = f"{_outcome(line)} (±{line['margin']:g})"
        khat = f"{_share(mean['khat_bad'])}, {_share(mean['khat_refined_bad'])}"
        evidence, gap = f"{mean['log_evidence']:.2f}", f"{mean['gap']:.2f}"
        rows.append([data, f"`{name}`", evidence, told, within, gap, khat, len(fits)])
    header = ["data", "map", "evidence", "difference to `logvar`", "equivalent (margin)", "encoder's gap"]
    return _markdown([*header, "k̂ bad: encoder, refined", "seeds"], rows)


def _outcome(line: Any) -> str:
    """What an interval says about its margin and about zero."""
    if line["equivalent"]:
        return "yes, though not equal" if line["decided"] else "yes"
    return "no: different" if line["decided"] else "open"


def mechanism_table(results: Results) -> str:
    """What maps see at the end of a fit of the digits, and what Adam's memory does to the speed."""
    table = results["mechanism"]
    digits = table[table["part"] == "digits"]
    end = digits[digits["step"] == digits["step"].max()]
    seen = _markdown(
        ["map", "slope (5% to 95%)", "signal to noise", "Fisher information of raw"],
        [
            [
                f"`{r['map']}`",
                f"{r['slope']:.2f} ({r['slope_low']:.2f} to {r['slope_high']:.2f})",
                f"{r['signal_to_noise']:.3f}",
                f"{r['fisher']:.2f}",
            ]
            for _, r in end.iterrows()
        ],
    )
    steps: Any = mechanism.measured_steps(table)
    names = dict.fromkeys(name for name, _ in steps.index)
    speeds = _markdown(
        ["steps from σ = 1 to 0.01", "rate", *(f"β₂ = {beta2:g}" for beta2 in mechanism.MEMORIES)],
        [
            [
                f"`{name}`",
                f"{rate:g}",
                *(_whole(steps.loc[(name, rate), beta2]) for beta2 in mechanism.MEMORIES),
            ]
            for name in names
            for rate in mechanism.SPEED_RATES
        ],
    )
    return f"{seen}\n{speeds}"


def guides_table(results: Results) -> str:
    """Families under three maps: encoder beside refined."""
    table = results["guides"]
    rows = []
    for (family, name), fits in table.groupby(["family", "map"], sort=False):
        mean: Any = fits.groupby("who").mean(numeric_only=True)
        encoder, refined = mean.loc["encoder"], mean.loc["refined"]
        cells = [f"{refined['log_evidence']:.2f}"]
        cells += [f"{encoder['gap']:.2f}, {refined['gap']:.2f}"]
        cells += [f"{_share(encoder[c])}, {_share(refined[c])}" for c in ("khat_bad", "coverage")]
        cells += [f"{encoder['fit_seconds']:.1f}, {encoder['seconds']:.1f}, {refined['seconds']:.1f}"]
        rows.append([family, f"`{name}`", *cells])
    header = ["guide", "map", "evidence", "gap: encoder, refined", "k̂ bad", "90% intervals cover"]
    return _markdown([*header, "seconds: fit, encoder, refined"], rows)


def published_table(results: Results) -> str:
    """Test NLL here and elsewhere."""
    rows = []
    for _, r in results.get(LONG, pd.DataFrame()).iterrows():
        what = f"{'VAE' if r['particles'] == 1 else 'IWAE'}, k = {r['particles']}"
        nll = f"**{r['nll']:.2f}** ± {1.96 * r['nll_se']:.2f}"
        rows.append([f"here, `{r['map']}`", what, f"{r['steps']:,}, batch {published.BATCH}", nll, ""])
    for _, r in results["published"].iterrows():
        what = f"{r['objective']}, k = {r['particles']}"
        nll = f"**{r['nll']:.2f}** ± {1.96 * r['nll_se']:.2f}"
        rows.append(
            [f"here, `{r['map']}`", what, f"{r['steps']:,}, batch {published.BATCH}", nll, r["active_units"]]
        )
    for source, objective, particles, value in published.PUBLISHED:
        taken = published.STEPS_TAKEN.get(source, "")
        rows.append([source, f"{objective}, k = {particles}", taken, f"{value:.2f}", ""])
    return _markdown(["source", "objective", "steps", "test −log p(x), nats", "active units"], rows)


def claims_table(results: Results) -> str:
    """The five claims."""
    found = claims.measured(results)
    rows = [[f"*{claim}*", f"**{verdict}**", found[claim]] for claim, (verdict, _) in claims.CLAIMS.items()]
    return _markdown(["claim", "verdict", "measured"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "claims": claims_table,
    "equivalence": equivalence_table,
    "truth": truth_table,
    "robustness": robustness_table,
    "robustness_best": robustness_best_table,
    "precision": precision_table,
    "constraints": constraints_table,
    "real_data": real_data_table,
    "mechanism": mechanism_table,
    "published": published_table,
    "guides": guides_table,
}

if __name__ == "__main__":
    write_page()
