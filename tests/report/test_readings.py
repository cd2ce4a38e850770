"""Every guide has a line for every measure, and gaps only where they were measured."""

import dataclasses

import numpy as np
import xarray as xr

from pyro_vae.report.findings import Findings
from pyro_vae.report.readings import Reading, read_findings_aloud, read_together

GUIDES = ["logvar", "softplus"]


def findings():
    """Two guides, two seeds: the first guide is right, the second narrow and half collapsed."""
    observed = ("guide", "seed", "observation")
    values = {"log_evidence": -100.0, "elbo": -103.0, "kl": 1.0, "khat": 0.1}
    diagnostics = xr.Dataset(
        {name: (observed, np.full((2, 2, 20), value)) for name, value in values.items()},
        {"guide": GUIDES},
        {"khat_threshold": 2 / 3, "draws": 1000, "latent_dim": 2},
    )
    covered = np.broadcast_to(np.array([0.9, 0.74])[:, None, None, None], (2, 2, 1, 2))
    calibration = xr.Dataset(
        {"coverage": (("guide", "seed", "level", "latent"), covered)},
        {"guide": GUIDES, "level": [0.9]},
        {"simulations": 1000},
    )
    active = np.array([[[True, True]] * 2, [[True, False]] * 2])
    units = xr.Dataset(
        {"active": (("guide", "seed", "latent"), active)}, {"guide": GUIDES, "latent": ["z[0]", "z[1]"]}
    )
    gap = ("guide", "observation"), np.full((2, 5), 0.5)
    gaps = xr.Dataset({"approximation_gap": gap, "amortization_gap": gap}, {"guide": GUIDES})
    return Findings({}, diagnostics, calibration, units, xr.Dataset(), gaps, {})


def test_a_line_for_each_measure_and_guide():
    told = {(reading.measure, reading.guide): reading.sentence for reading in read_findings_aloud(findings())}
    assert list(told) == [(m, g) for m in ("evidence", "gaps", "coverage", "units") for g in GUIDES]
    assert "log evidence -100.00 and ELBO -103.00" in told["evidence", "logvar"]
    assert "q loses 1.00 nats per observation" in told["gaps", "softplus"]
    assert told["coverage", "logvar"].startswith("the width of q is right")
    assert told["coverage", "softplus"] == "q is too narrow: its 90% intervals cover 74% of the latents"
    assert told["units", "logvar"] == "2 of 2 latent dimensions are active"
    assert told["units", "softplus"] == "1 of 2 latent dimensions is active; collapsed: z[1]"


def test_no_gaps():
    readings = read_findings_aloud(dataclasses.replace(findings(), gaps=None))
    assert {reading.measure for reading in readings} == {"evidence", "coverage", "units"}


def test_bounds_of_the_evidence_are_those_of_the_refined_guides():
    by_fit = ("guide", "seed")
    bounds = {"evidence_lower": -9.2, "evidence_upper": -9.0}
    refined = xr.Dataset(
        {name: ((*by_fit, "simulation"), np.full((2, 2, 5), value)) for name, value in bounds.items()}
        | {"sandwich": (by_fit, np.full((2, 2), 0.2))},
        {"guide": GUIDES},
    )
    wider = findings().calibration.assign(refined + 1.0)
    for changed in ({"refined_calibration": refined}, {"calibration": wider, "refined_calibration": refined}):
        readings = read_findings_aloud(dataclasses.replace(findings(), **changed))
        told = [reading.sentence for reading in readings if reading.measure == "bounds"]
        assert len(told) == len(GUIDES)
        assert "lies between -9.20 and -9.00 nats per observation: it is known to within 0.20" in told[0]
    alone = read_findings_aloud(dataclasses.replace(findings(), calibration=wider))
    assert any("between -8.20 and -8.00" in reading.sentence for reading in alone)


def test_what_is_said_of_many_guides_is_said_once() -> None:
    active = {"a": 8, "b": 6, "c": 8}
    said = [Reading("units", name, f"{n} of 8 latents, -{n}.50 nats") for name, n in active.items()]
    apart = Reading("units", "d", "nothing is active")
    assert read_together([*said, apart]) == [
        Reading("units", "a, b, c", "6–8 of 8 latents, -8.50 to -6.50 nats"),
        apart,
    ]
