"""The verdict says what was found from both sides: where it must, and not where it must not."""

import dataclasses

import numpy as np
import xarray as xr

from pyro_vae.report.findings import Findings
from pyro_vae.report.verdict import Verdict, reach_verdict
from tests.report.test_readings import GUIDES, findings

OBSERVED = ("guide", "seed", "observation")
ATTRS = {"khat_threshold": 2 / 3, "draws": 1000, "latent_dim": 2}


def history(end: float = 0.0, slope: float = 0.0) -> xr.Dataset:
    """100 epochs of one step: the loss falls to ``end``, and at the end still by ``slope`` per epoch."""
    epochs = np.arange(100)
    loss = end + 50 * np.exp(-epochs / 5) + slope * (99 - epochs)
    return xr.Dataset(
        {
            "loss": ("step", loss),
            "epoch_step": ("epoch", epochs + 1),
            "validation": ("epoch", loss + 3),
        }
    )


def refined(gain: float = 0.0, spread: float = 0.01, khat: float = 0.1) -> xr.Dataset:
    """Evidence of two guides over seeds: the second is ahead by ``gain``, and seeds differ by ``spread``."""
    seeds = np.array([[0.0, 0.0], [gain - spread, gain + spread]])[:, :, None]
    values = {"log_evidence": -90.0, "elbo": -90.1, "kl": 5.0, "khat": khat, "ess": 500.0}
    made = {name: (OBSERVED, np.full((2, 2, 20), value)) for name, value in values.items()}
    made["log_evidence"] = OBSERVED, -90.0 + np.linspace(0, 1, 20) + seeds
    return xr.Dataset(made, {"guide": GUIDES}, ATTRS)


def study(of: xr.Dataset | None, slope: float = 0.0) -> Findings:
    histories = {guide: [history(80.0, slope)] * 2 for guide in GUIDES}
    calibration = None if of is None else findings().calibration
    return dataclasses.replace(findings(), histories=histories, refined=of, refined_calibration=calibration)


def verdict(of: xr.Dataset | None, slope: float = 0.0) -> Verdict:
    return reach_verdict(study(of, slope), run="runs/x", longer="LONGER", more_seeds="MORE")


def test_a_decided_and_believable_study_needs_no_next_command() -> None:
    found = verdict(refined(gain=1.0))
    assert (found.guide, found.decided, found.converged, found.next_command) == ("softplus", True, True, None)
    assert found.difference is not None
    assert found.low is not None
    assert found.low < found.difference < found.high  # type: ignore[operator]
    assert abs(found.difference - 1.0) < 1e-9
    assert "Refined posteriors can be believed" in found.sentences[1]
    assert "20 held-out observations × 2 seeds" in found.sentences[1]


def test_bad_weights_make_no_winner_and_name_a_command() -> None:
    found = verdict(refined(gain=1.0, khat=0.9))
    assert (found.guide, found.difference, found.decided) == (None, None, False)
    assert found.next_command == "pyro-vae diagnose runs/x --draws 10000"
    assert "Refined posteriors cannot be believed: the weights of 100.0% are bad" in found.sentences[1]


def test_what_is_advised_can_be_typed() -> None:
    good = study(refined(gain=1.0))
    bad = dataclasses.replace(good, diagnostics=good.diagnostics.assign(khat=2 + 0 * good.diagnostics.khat))
    advice = reach_verdict(bad, run="runs/x", longer="LONGER", more_seeds="MORE").sentences[1]
    assert "by fit.refined() as the guide or `pyro-vae diagnose runs/x --refined refined.nc`" in advice


def test_a_loss_that_still_falls_is_said_before_seeds_are_asked_for() -> None:
    found = verdict(refined(gain=0.3, spread=1.0), slope=0.2)
    assert (found.converged, found.next_command) == (False, "LONGER")
    assert "Not every fit has settled" in found.sentences[2]
    settled = verdict(refined(gain=0.3, spread=1.0))
    assert (settled.converged, settled.decided, settled.next_command) == (True, False, "MORE")


def test_fits_too_short_to_be_judged_are_said_so_with_a_command() -> None:
    short = dataclasses.replace(
        study(refined(gain=1.0)),
        histories={guide: [history(80.0).isel(epoch=slice(20), step=slice(20))] * 2 for guide in GUIDES},
    )
    found = reach_verdict(short, run="runs/x", longer="LONGER", more_seeds="MORE")
    assert (found.converged, found.next_command) == (None, "LONGER")
    assert "Whether the fits have settled cannot be told from 20 epochs" in found.sentences[2]


def test_where_no_difference_matters_no_seeds_are_asked_for() -> None:
    found = verdict(refined(gain=0.001, spread=0.01))
    assert (found.decided, found.next_command) == (False, None)
    assert "Every difference is smaller than 0.5 nats" in found.sentences[-1]


def test_a_run_of_version_0_1_is_asked_to_be_diagnosed_again() -> None:
    found = verdict(None)
    assert found.believable is None
    assert found.next_command == "pyro-vae diagnose runs/x --draws 1000"


def test_the_belief_table_has_a_row_for_the_encoder_and_one_refined() -> None:
    table = study(refined()).belief().reset_index()
    assert table[["guide", "q"]].values.tolist() == [[g, q] for g in GUIDES for q in ("encoder", "refined")]
    np.testing.assert_allclose(table["gap"], np.where(table["q"] == "encoder", 13.5, 0.6), atol=0.01)
