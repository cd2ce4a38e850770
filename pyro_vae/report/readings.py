"""What the numbers of each guide mean, a line for each measure."""

from dataclasses import dataclass

from pyro_vae.posterior import (
    coverage_reading,
    evidence_reading,
    gaps_reading,
    sandwich_reading,
    units_reading,
)
from pyro_vae.report.findings import Findings


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
