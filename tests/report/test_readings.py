"""Each reading says what is true of the numbers."""

import numpy as np
import pytest
import xarray as xr

from pyro_vae.report.findings import Findings
from pyro_vae.report.readings import read_findings_aloud

GUIDES = ["logvar", "softplus"]


def findings(*, khat=(0.1, 0.1), coverage=(0.9, 0.9), active=(3, 3), family=0.5, encoder=2.0):
    """Two guides, two seeds, and what they differ in."""
    rng = np.random.default_rng(0)
    observed = ("guide", "seed", "observation")
    evidence = rng.normal(-100, 1, (2, 2, 20))
    diagnostics = xr.Dataset(
        {
            "log_evidence": (observed, evidence),
            "elbo": (observed, evidence - 3.0),
            "kl": (observed, np.ones((2, 2, 20))),
            "khat": (observed, np.broadcast_to(np.array(khat)[:, None, None], (2, 2, 20))),
        },
        {"guide": GUIDES},
        {"khat_threshold": 2 / 3, "draws": 1000, "latent_dim": 3},
    )
    covered = np.broadcast_to(np.array(coverage)[:, None, None, None], (2, 2, 1, 3))
    calibration = xr.Dataset(
        {
            "coverage": (("guide", "seed", "level", "latent"), covered),
            "pit": (("guide", "seed", "simulation", "latent"), np.zeros((2, 2, 1000, 3))),
        },
        {"guide": GUIDES, "level": [0.9]},
    )
    is_active = np.arange(3) < np.array(active)[:, None, None]
    units = xr.Dataset(
        {"active": (("guide", "seed", "latent"), np.broadcast_to(is_active, (2, 2, 3)))}, {"guide": GUIDES}
    )
    gaps = xr.Dataset(
        {
            "approximation_gap": (("guide", "observation"), np.full((2, 5), family)),
            "amortization_gap": (("guide", "observation"), np.full((2, 5), encoder)),
        },
        {"guide": GUIDES},
    )
    return Findings({}, diagnostics, calibration, units, xr.Dataset(), gaps, {})


def said(given, measure):
    return [reading.sentence for reading in read_findings_aloud(given) if reading.measure == measure]


def test_guides_that_agree_share_a_line():
    (sentence,) = said(findings(coverage=(0.74, 0.7)), "coverage")
    assert sentence == "q is too narrow: its 90% intervals cover 74% (logvar), 70% (softplus) of the latents"


def test_guides_that_differ_have_their_own():
    first, second = said(findings(coverage=(0.9, 0.99)), "coverage")
    assert first == "the width of q is right: its 90% intervals cover 90% (logvar) of the latents"
    assert second == "q is too wide: its 90% intervals cover 99% (softplus) of the latents"


@pytest.mark.parametrize(
    ("khat", "verdict"), [(0.1, "can be relied on:"), (1.0, "cannot be relied on:"), (np.nan, "cannot")]
)
def test_khat(khat, verdict):
    (sentence,) = said(findings(khat=(khat, khat)), "k̂")
    assert verdict in sentence
    assert "1000 draws of 3 latent dimensions" in sentence


@pytest.mark.parametrize(
    ("family", "encoder", "verdict"),
    [
        (0.5, 2.0, "a better encoder or more data would help: encoder + family lose 2.00 + 0.50"),
        (2.0, 0.5, "a richer family, such as AmortizedMultivariateNormal, would help"),
        (0.01, 0.02, "q is close to the posterior"),
    ],
)
def test_gaps(family, encoder, verdict):
    (sentence,) = said(findings(family=family, encoder=encoder), "gaps")
    assert sentence.startswith(verdict)


@pytest.mark.parametrize(
    ("active", "verdict"),
    [
        (3, "the whole of z is used: 3"),
        (1, "part of z carries nothing: 1"),
        (0, "the posterior has collapsed to the prior: 0"),
    ],
)
def test_units(active, verdict):
    (sentence,) = said(findings(active=(active, active)), "units")
    assert sentence.startswith(verdict)


def test_evidence():
    (sentence,) = said(findings(), "evidence")
    assert sentence.startswith("the ELBO lies 3.00 (logvar), 3.00 (softplus) nats per observation below")
