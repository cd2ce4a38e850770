"""What the numbers of each guide mean, a line for each measure."""

import re
from dataclasses import dataclass
from itertools import groupby

from pyro_vae.posterior import (
    coverage_reading,
    evidence_reading,
    gaps_reading,
    sandwich_reading,
    units_reading,
)
from pyro_vae.report.findings import Findings

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)")
"""Not those in names and units."""


@dataclass(frozen=True)
class Reading:
    """A sentence about one measure of one guide."""

    measure: str
    guide: str
    sentence: str


def read_findings_aloud(findings: Findings) -> list[Reading]:
    """Evidence and k̂, gaps, coverage, bounds of the evidence on simulated data (of the refined guides where
    they were measured) and active units of each guide; seeds pooled, units of the first seed.

    For example: "q is too narrow: its 90% intervals cover 74% of the latents".
    """
    tellers = {
        "evidence": ("diagnostics", evidence_reading),
        "gaps": ("gaps", gaps_reading),
        "coverage": ("calibration", coverage_reading),
        "bounds": (_bounding(findings), sandwich_reading),
        "units": ("units", lambda units: units_reading(units.isel(seed=0))),
    }
    return [
        Reading(name, guide, tell(values))
        for name, (measure, tell) in tellers.items()
        if measure and getattr(findings, measure) is not None
        for guide, values in findings.by_guide(measure).items()
    ]


def _bounding(findings: Findings) -> str:
    """The measure with the best bounds of the evidence; runs of earlier versions have none."""
    for measure in ("refined_calibration", "calibration"):
        found = getattr(findings, measure)
        if found is not None and "sandwich" in found:
            return measure
    return ""


def read_together(readings: list[Reading]) -> list[Reading]:
    """One sentence for guides of which the same is said, with what their numbers lie between.

    Examples
    --------
    >>> told = [Reading("coverage", name, f"q covers {n}% of 90%") for name, n in (("a", 61), ("b", 64))]
    >>> read_together(told)
    [Reading(measure='coverage', guide='a, b', sentence='q covers 61–64% of 90%')]
    """

    def kind(reading: Reading) -> tuple[str, str]:
        return reading.measure, NUMBER.sub("#", reading.sentence)

    order = {key: i for i, key in reversed(list(enumerate(map(kind, readings))))}
    together = []
    for _, group in groupby(sorted(readings, key=lambda reading: order[kind(reading)]), kind):
        alike = list(group)
        columns = zip(*(NUMBER.findall(reading.sentence) for reading in alike), strict=True)
        numbers = iter([_between(column) for column in columns])
        sentence = NUMBER.sub(lambda _: next(numbers), alike[0].sentence)  # noqa: B023 - used at once
        together.append(Reading(alike[0].measure, ", ".join(reading.guide for reading in alike), sentence))
    return together


def _between(numbers: tuple[str, ...]) -> str:
    low, high = min(numbers, key=float), max(numbers, key=float)
    return low if low == high else f"{low} to {high}" if "-" in low + high else f"{low}–{high}"
