"""The experiments run, tiny, and what must hold in theory holds."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evidence import long, tables
from evidence.descent import BATCH, Rule, arrival, descend, kl_from_truth
from evidence.digits import load_digits
from evidence.experiment import Effort, Experiment
from evidence.experiments import (
    constraints,
    equivalence,
    guides,
    mechanism,
    precision,
    published,
    real_data,
    truth,
)
from evidence.plain import PLAIN
from evidence.run import main, run_before
from evidence.statistics import differences
from pyro_vae import scales
from pyro_vae.posterior.pairing import paired_differences
from tests.test_data_named import idx_bytes

pytestmark = pytest.mark.arviz
TINY = Effort("tiny")


def rows_of(experiment: Experiment, first: int | None = None) -> pd.DataFrame:
    return pd.DataFrame([row for job in experiment.jobs(TINY)[:first] for row in job()])


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder like MNIST's, with few images of noise."""
    rng = np.random.default_rng(0)
    for stem, n in (("train", 300), ("t10k", 510)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(n, np.uint8)))
    return tmp_path


def test_matched_rates_are_the_same_trajectory_to_the_last_bit() -> None:
    table = rows_of(equivalence)
    matched = table[table["condition"] == "matched"]
    assert (matched["largest"] == 0).all()
    assert (matched["elbo"] == 0).all()
    assert matched["moved"].max() > 0.01
    assert (table[table["condition"] == "equal"]["largest"] > 0.01).all()
    assert equivalence.watched_epochs(150)[-1] == 150


@pytest.mark.parametrize("name", ["logvar", "softplus", "stdplus"])
def test_descent_ends_at_the_truth(name: str) -> None:
    exact = torch.tensor([[0.5, 1.0, 2.0]]).expand(3, -1)
    path = descend(Rule(scales.get(name)), exact, torch.tensor(0.01), 1500, seed=0)
    assert (arrival(path, exact) < 1500).all()
    assert (kl_from_truth(path, exact) < 4 * 0.01 / math.sqrt(BATCH)).all()


def test_a_cosine_takes_off_the_jitter_of_the_end() -> None:
    """The gap at the end is of the order of the rate, and a cosine brings the rate to zero."""
    exact = torch.tensor([0.5, 1.0, 2.0]).expand(3, -1)
    constant, cosine = (
        kl_from_truth(descend(Rule(scales.get("logstd")), exact, torch.tensor(0.1), 2000, 0, cosine=c), exact)
        for c in (False, True)
    )
    assert (cosine < constant / 10).all()


def test_gap_of_a_known_scale() -> None:
    path = descend(Rule(scales.get("logstd")), torch.ones(1), torch.tensor(1e-12), 100, seed=0, start=0.5)
    torch.testing.assert_close(kl_from_truth(path, torch.ones(1)), torch.tensor([math.log(2) - 0.375]))
    assert arrival(path, torch.ones(1)).isnan().all()


def test_truth_and_its_figure() -> None:
    table = rows_of(truth)
    assert set(table["map"]) == set(truth.MAPS)
    trivial = table[(table["truth"] == 1) & (table["start"] == 1) & (table["lr"] == 1e-3)]
    assert (trivial["steps"] == 100).all()  # they are there; the average has to fill
    truth.draw({"truth": table})
    assert "never" in tables.truth_table({"truth": table})


def test_constraints_that_do_not_bind_change_nothing() -> None:
    everything = rows_of(constraints)
    table = everything[everything["schedule"] == "constant"]
    slow = table[(table["lr"] == 1e-3) & (table["start"] == 1)].pivot(
        index="seed", columns="way", values="gap"
    )
    for way in ("clamp", "projected", "lagrange 1", "lagrange 10000"):
        pd.testing.assert_series_equal(slow[way], slow["none"], check_names=False)
    fast = table[(table["lr"] == 0.1) & (table["start"] == 1)].set_index("way")
    assert (fast.loc["none", "dead"] > 0).all()
    assert (fast.loc["none", "gap"] == math.inf).all()
    assert (fast.loc["projected", "dead"] == 0).all()
    constraints.draw({"constraints": everything})
    assert "dead)" in tables.constraints_table({"constraints": everything})


def test_failed_fits_are_recorded_and_not_raised() -> None:
    from evidence.experiments import robustness

    table = pd.DataFrame(
        [
            *robustness.fit_seeds("logvar", robustness.LIBRARY, 1e-2, 2, 3),
            *robustness.fit_seeds("logvar", robustness.TORCH, 1e-2, 2, 3),
            *robustness.fit_seeds("softplus", robustness.LIBRARY, 1e-2, 2, 3),
            *robustness.fit_seeds("logstd", robustness.TORCH, 1e4, 2, 12),
        ]
    )
    assert table["stopped"].tolist() == [0] * 6 + [1] * 2
    assert table["failed"].iloc[-2:].all()
    ours, plain = (table[table["arithmetic"] == kind].iloc[0] for kind in ("LogScaleNormal", "torch Normal"))
    assert ours["elbo"] == pytest.approx(plain["elbo"], rel=1e-4)  # at an ordinary rate they are one guide
    assert load_digits().without_latents == pytest.approx(table["baseline"].iloc[0])
    robustness.draw({"robustness": table})
    assert "100%" in tables.robustness_table({"robustness": table})


def test_precision_of_the_library_and_of_torch() -> None:
    table = rows_of(precision, 2)
    log_q = table[(table["quantity"] == "log q") & (table["precision"] == "float32")].set_index("arithmetic")
    assert (log_q.loc["LogScaleNormal", "rms"] < 1e-5).all()
    narrow = log_q[log_q["decade"] == -12].loc["torch Normal"]
    assert (narrow["bias"] - 0.5).abs().max() < 0.1  # ε² has vanished from the density
    assert (table[table["arithmetic"] == "LogScaleNormal"]["nonfinite"] == 0).all()
    precision.draw({"precision": table})
    tables.precision_table({"precision": table})


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_maps_are_the_librarys(name: str) -> None:
    raw = torch.linspace(-8, 8, 101)
    torch.testing.assert_close(PLAIN[name](raw), scales.get(name)(raw))


def test_signal_to_noise_is_the_same_under_every_map() -> None:
    table = pd.DataFrame(mechanism.jobs(TINY)[0]())
    spread = table.groupby("step")["signal_to_noise"].agg(["min", "max"])
    np.testing.assert_allclose(spread["max"], spread["min"], rtol=1e-6)
    np.testing.assert_allclose(table[table["map"] == "logstd"]["fisher"], 2, rtol=1e-6)


def test_the_memory_of_adam_predicts_its_steps() -> None:
    rows = mechanism.speeds("logstd", 0.99, 3000)
    (row,) = (row for row in rows if row["lr"] == 1e-2 and row["truth"] == 1e-2)
    assert row["steps"] == pytest.approx(row["by_memory"], rel=0.3)
    assert row["steps"] > 3 * row["by_rate"]
    far, farther = (
        mechanism.steps_by_memory(scales.get("logstd"), sd, 1.0, 0.99) for sd in (1e-4, 1e-4 / math.e)
    )
    assert farther - far == pytest.approx(400, rel=1e-2)  # 4τ for each e-fold of σ


@pytest.mark.slow
def test_real_data_and_published(mnist: Path) -> None:
    effort = Effort("tiny", mnist)
    jobs = {(job.args[0], job.args[1], job.args[2]): job for job in real_data.jobs(effort)}  # type: ignore[attr-defined]
    asked = [
        (data, name, seed) for data in real_data.PROTOCOLS for name in ("logvar", "logstd") for seed in (0, 1)
    ]
    table = pd.DataFrame([row for key in asked for row in jobs[key]()])
    assert set(table["data"]) == {"digits", "breast cancer", "mnist"}
    assert (table["gap"] > 0).all()
    real_data.draw({"real_data": table})
    assert "breast cancer" in tables.real_data_table({"real_data": table})
    families = pd.DataFrame([row for job in guides.jobs(TINY)[:9] for row in job()])
    gap = families.pivot(index=["family", "map"], columns="who", values="gap")
    assert (gap["refined"] < gap["encoder"]).all()
    guides.draw({"guides": families})
    assert "full covariance" in tables.guides_table({"guides": families})
    runs = pd.DataFrame([row for job in published.jobs(effort)[1:2] for row in job()])
    assert runs["nll"].iloc[0] < runs["neg_elbo"].iloc[0]
    published.draw({"published": runs})
    assert "86.76" in tables.published_table({"published": runs})
    assert not published.jobs(TINY)


@pytest.mark.parametrize(
    ("difference", "equivalent", "decided"), [(0.0, True, False), (0.3, True, True), (0.6, False, True)]
)
def test_equivalent_is_a_whole_interval_within_the_margin(
    difference: float, equivalent: bool, decided: bool
) -> None:
    noise = np.tile([-0.05, 0.05], 10)
    rows = [
        {"data": "digits", "map": name, "seed": seed, "log_evidence": -90 + shift * (name == "logstd")}
        for name in ("logvar", "logstd")
        for seed, shift in enumerate(difference + noise)
    ]
    line = real_data.table_of_differences(pd.DataFrame(rows)).loc[("digits", "logstd")]
    assert (line["equivalent"], line["decided"]) == (equivalent, decided)


def test_differences_are_those_of_compare() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4))
    table = pd.DataFrame(
        [
            {"map": name, "seed": seed, "evidence": values[i, seed]}
            for i, name in enumerate(("logvar", "softplus"))
            for seed in range(4)
        ]
    )
    ours = differences(table, "evidence").loc["softplus"]
    diagnostics = {
        name: {"log_evidence": np.repeat(values[i][:, None], 2, axis=1)}
        for i, name in enumerate(("logvar", "softplus"))
    }
    theirs = paired_differences(diagnostics).sel(pair="softplus − logvar")
    assert ours["difference"] == pytest.approx(float(theirs["mean"]))
    assert (ours["low"], ours["high"]) == pytest.approx((float(theirs["low"]), float(theirs["high"])))


def test_a_job_that_is_too_late_does_not_begin() -> None:
    assert run_before(0.0, lambda: [{"a": 1}]) is None


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "everything"])
    assert "everything" in capsys.readouterr().err


def test_a_long_run_that_is_tested_replaces_its_own_row_alone(tmp_path: Path) -> None:
    results = tmp_path / "results" / "long.csv"
    long.keep({"run": "IWAE-logstd", "nll": 85.5}, results)
    long.keep({"run": "VAE-logvar", "nll": 90.0}, results)
    long.keep({"run": "VAE-logvar", "nll": 87.0}, results)
    table = pd.read_csv(results)
    assert list(table["run"]) == ["VAE-logvar", "IWAE-logstd"]
    assert list(table["nll"]) == [87.0, 85.5]
