"""What the numbers of a posterior mean, a line each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro_vae.posterior import coverage_reading
from pyro_vae.report.findings import Findings

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Reading", "read_findings_aloud"]

FEW, MANY = 0.05, 0.5
"""Shares of bad k̂: up to ``FEW`` importance weights can be relied on, from ``MANY`` on they cannot."""
SMALL = 0.1
"""Nats: a gap below is nothing to work on."""


@dataclass(frozen=True)
class Reading:
    """A line about one measure, for all guides of which the same is true."""

    measure: str
    guides: tuple[str, ...]
    sentence: str


def read_findings_aloud(findings: Findings) -> list[Reading]:
    """Readings of evidence, gaps, k̂, coverage and active units; guides that agree share a line.

    For example: "q is too narrow: its 90% intervals cover 63% (logvar), 61% (softplus) of the latents".
    """
    diagnostics, lines = findings.by_guide("diagnostics"), []
    lines += _lines("evidence", diagnostics, _bound)
    if findings.gaps is not None:
        lines += _lines("gaps", findings.by_guide("gaps"), _gap)
    lines += _lines("k̂", diagnostics, _khat)
    lines += _lines("coverage", findings.by_guide("calibration"), _coverage)
    lines += _lines("units", findings.by_guide("units"), _units)
    return lines


Told = tuple[str, str, str]
"""A sentence as (what comes before the number, the number, what comes after)."""


def _lines(
    measure: str, by_guide: "Mapping[str, xr.Dataset]", tell: "Callable[[xr.Dataset], Told]"
) -> list[Reading]:
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for guide, values in by_guide.items():
        before, number, after = tell(values)
        groups.setdefault((before, after), {})[guide] = number
    readings = []
    for (before, after), numbers in groups.items():
        told = [f"{number} ({guide})" if len(by_guide) > 1 else number for guide, number in numbers.items()]
        readings.append(Reading(measure, tuple(numbers), f"{before} {', '.join(told)} {after}".strip()))
    return readings


def _bound(diagnostics: "xr.Dataset") -> Told:
    loss = float((diagnostics["log_evidence"] - diagnostics["elbo"]).mean())
    return (
        "the ELBO lies",
        f"{loss:.2f}",
        "nats per observation below the log evidence, which is what q loses at least",
    )


def _gap(gaps: "xr.Dataset") -> Told:
    family = float(gaps["approximation_gap"].mean())
    encoder = float(gaps["amortization_gap"].mean())
    if max(family, encoder) < SMALL:
        verdict = "q is close to the posterior"
    elif encoder > family:
        verdict = "a better encoder or more data would help"
    else:
        verdict = "a richer family, such as AmortizedMultivariateNormal, would help"
    numbers = f"{encoder:.2f} + {family:.2f}"
    return f"{verdict}: encoder + family lose", numbers, "nats per observation"


def _khat(diagnostics: "xr.Dataset") -> Told:
    threshold, khat = diagnostics.attrs["khat_threshold"], diagnostics["khat"]
    bad = float((khat.isnull() | (khat > threshold)).mean())
    verdict = (
        "importance weights can be relied on"
        if bad <= FEW
        else "importance weights cannot be relied on for some observations"
        if bad < MANY
        else "importance weights cannot be relied on"
    )
    about = f"{diagnostics.attrs['draws']} draws of {diagnostics.attrs['latent_dim']} latent dimensions"
    return f"{verdict}:", f"{bad:.0%}", f"of k̂ are above {threshold:.2f} ({about})"


def _coverage(calibration: "xr.Dataset") -> Told:
    pooled = calibration.mean("seed", keep_attrs=True)
    number = f"{float(pooled['coverage'].sel(level=0.9).mean()):.0%}"
    before, after = coverage_reading(pooled).rsplit(f" {number} ", 1)
    return before, number, after


def _units(units: "xr.Dataset") -> Told:
    active = units["active"].sum("latent")
    low, high, total = int(active.min()), int(active.max()), units.sizes["latent"]
    number = f"{low}" if low == high else f"{low} to {high}"
    after = f"of {total} latent dimensions are active"
    if low == total:
        return "the whole of z is used:", number, after
    if high == 0:
        return "the posterior has collapsed to the prior:", number, after
    return "part of z carries nothing:", number, after
