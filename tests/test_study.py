"""The main job, small: what it leaves on disk, that it repeats, and what it says."""

import base64
import dataclasses
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_vae.study.completion
from pyro_vae import Fit, data
from pyro_vae.report.findings import MEASURES, REFINED
from pyro_vae.storage.records import write_record
from pyro_vae.study import Study, StudyConfig, make_pair, report_again, run_study
from pyro_vae.study.config import read_config
from tests import conftest

OWN_SEEDS = True


pytestmark = pytest.mark.arviz

FIGURES = (
    "evidence",
    "training",
    "khat",
    "calibration",
    "gaps",
    "reference",
    "units",
    "scale-training",
    "scale-observations",
    "predictive",
    "samples",
    "traversal",
    "latents",
    "forest",
)


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


SMALL = StudyConfig(**conftest.SMALL)


@pytest.fixture
def study(digits_study: Study) -> Study:
    return digits_study


def test_everything_is_on_disk_and_nothing_else(study: Study) -> None:
    found = {str(p.relative_to(study.folder)) for p in study.folder.rglob("*") if p.is_file()}
    guides = ("logvar", "softplus")
    fits = {
        f"fits/{g}-{s}/{f}"
        for g in guides
        for s in (0, 1)
        for f in ("params.safetensors", "fit.json", "history.nc")
    }
    figures = {f"figures/{name}.png" for name in FIGURES}
    names = (*MEASURES, *REFINED, "gaps")
    measures = {f"{name}.nc" for name in names}
    assert found == {
        "run.json",
        "compare.csv",
        "report.html",
        *measures,
        *fits,
        *figures,
        *(f"posterior/{g}.nc" for g in guides),
    }


def test_diagnostics_are_over_guide_seed_and_observation(study: Study) -> None:
    with xr.open_dataset(study.folder / "diagnostics.nc", engine="h5netcdf") as saved:
        assert saved.sizes == {"guide": 2, "seed": 2, "observation": 359}
        assert {"log_evidence", "elbo", "khat", "kl", "reconstruction"} <= set(saved)
        assert list(saved["guide"].values) == ["logvar", "softplus"]
        assert bool((saved["log_evidence"] >= saved["elbo"]).all())
        np.testing.assert_array_equal(saved["khat"], study.diagnostics["khat"])


def test_posteriors_open_in_arviz(study: Study) -> None:
    with xr.open_datatree(study.folder / "posterior" / "softplus.nc", engine="h5netcdf") as tree:
        assert tree["posterior"]["z"].sizes == {"chain": 1, "draw": 500, "observation": 8, "latent": 2}
        groups = {"posterior_predictive", "observed_data", "log_likelihood", "sample_stats"}
        assert groups <= set(tree.children)
        assert tree["prior_predictive"]["x"].sizes == {"chain": 1, "draw": 8, "feature": 64}
        assert tree["traversal"]["x"].sizes == {"latent": 2, "offset": 7, "feature": 64}
        assert tree["repaired"]["z"].sizes == {"chain": 1, "draw": 500, "observation": 4, "latent": 2}
        assert set(tree["repair"]["step"].values) <= {"guide", "resample", "local"}


def test_the_record_says_what_was_asked_and_what_ran_it(study: Study) -> None:
    record = json.loads((study.folder / "run.json").read_text())
    assert record["schema"] == 1
    assert record["config"]["scales"] == ["logvar", "softplus"]
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    begun, finished = (datetime.fromisoformat(record["result"].pop(name)) for name in ("started", "finished"))
    assert begun <= finished <= datetime.now(UTC)
    assert record["result"] == {
        "status": "done",
        "answer": study.answer,
        "verdict": json.loads(json.dumps(study.verdict.as_dict())),
        "image_shape": [8, 8],
        "failures": {},
    }


def test_the_page_is_self_contained_and_has_every_figure(study: Study) -> None:
    page = (study.folder / "report.html").read_text()
    assert study.answer in page
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(embedded) == len(FIGURES)
    assert all(base64.b64decode(text).startswith(b"\x89PNG") for text in embedded)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(re.findall(r'<img [^>]*alt="[^"]{40,}"', page)) == len(FIGURES)
    assert study.config.command(out=study.folder) in page


def test_a_saved_fit_of_a_run_can_be_loaded(study: Study) -> None:
    train, held_out = data.split(data.load("digits"), 0.2, seed=0)
    model, guide = make_pair(SMALL, train, "softplus", seed=5)
    fitted = Fit.load(study.folder / "fits" / "softplus-1", model, guide)
    again = pyro_vae.diagnose(fitted.model, fitted.guide, held_out.x, draws=100, seed=1)
    saved = study.diagnostics["log_evidence"].sel(guide="softplus", seed=1)
    np.testing.assert_allclose(again["log_evidence"], saved, rtol=1e-10)


def test_guides_start_from_the_same_function() -> None:
    """Equal weights and equal σ, whatever the map."""
    train, _ = data.split(data.load("digits"), 0.2, seed=0)
    x = torch.as_tensor(train.x[:5])
    posteriors, config = [], dataclasses.replace(SMALL, scales=("logvar", "logstd", "softplus"))
    for scale in config.scales:
        model, guide = make_pair(config, train, scale, seed=3)
        torch.manual_seed(1)  # the heads are made by the first call
        posteriors.append((guide.posterior(x), model.decode(torch.ones(1, 2)).base_dist.logits))
    for q, logits in posteriors[1:]:
        torch.testing.assert_close(q.mean, posteriors[0][0].mean)
        torch.testing.assert_close(q.stddev, torch.ones(5, 2))
        torch.testing.assert_close(logits, posteriors[0][1])


def test_the_summary_and_the_answer(study: Study) -> None:
    summary = study.summary()
    assert list(summary.columns) == [
        "evidence",
        "diff",
        "95% interval",
        "decided",
        "weight",
    ]
    assert study.comparison is not None
    assert list(summary.index) == list(study.comparison.index)
    assert summary["weight"].sum() == pytest.approx(1.0)
    undecided = not study.comparison["decided"].iloc[1:].any()
    assert ("data do not decide" in study.answer) == undecided
    assert study.answer in repr(study)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scales": ()}, "scales is empty; name at least one of"),
        ({"scales": ("softplu",)}, "softplu.*softplus"),
        ({"scales": ("logvar", "logvar")}, "scales names 'logvar' twice"),
        ({"seeds": 0}, "seeds is 0; give an integer of at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; give an integer"),
        ({"draws": 10}, "draws is 10; give an integer of at least 100"),
        ({"hidden": ()}, r"hidden is \(\); give the sizes"),
        ({"lr": 0.0}, "lr is 0.0; give a positive number"),
        ({"held_out": 1.0}, "held_out is 1.0; give a share between 0 and 1"),
        ({"gap_observations": -1}, "gap_observations is -1; give an integer of at least 0"),
        ({"lr": "fast"}, "lr is 'fast'; give a positive number"),
        ({"scales": "logvar"}, "scales is 'logvar'; give a tuple of names"),
        ({"data": 3}, "data is 3; give text"),
    ],
)
def test_a_request_that_cannot_be_met_gets_a_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StudyConfig(**options)  # type: ignore[arg-type]


def test_an_unknown_device_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device is 'gpu'"):
        run_study(StudyConfig(device="gpu"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class TestReadBack:
    def test_nothing_is_lost(self, study: Study) -> None:
        again = Study.load(study.folder)
        assert again.config == study.config
        assert again.answer == study.answer
        assert list(again.posteriors) == list(study.posteriors)
        for measure in ("diagnostics", "calibration", "units", "latents", "gaps"):
            xr.testing.assert_identical(getattr(again.findings, measure), getattr(study.findings, measure))
        pd.testing.assert_frame_equal(again.summary(), study.summary())

    def test_the_report_is_drawn_anew(self, study: Study) -> None:
        before = (study.folder / "report.html").read_text()
        (study.folder / "report.html").unlink()
        (study.folder / "figures" / "khat.png").unlink()
        with conftest.coarse_figures():  # as the first time
            assert report_again(Study.load(study.folder)) == study.folder / "report.html"
        assert (study.folder / "report.html").read_text() == before

    def test_a_folder_without_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"holds no run: there is no run.json in it"):
            Study.load(tmp_path)

    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            (lambda run: set_record(run, schema=99), "schema 99, and this version .* update pyro-vae"),
            (lambda run: set_record(run, schema="one"), "schema 'one', .* damaged or foreign"),
            (lambda run: set_record(run, result={"status": "running"}), "is 'running' and not done"),
            (lambda run: set_record(run, config={"sales": []}), "'sales' is no setting .* 'scales'"),
            (lambda run: set_record(run, config=None), "has no 'config'"),
            (lambda run: (run / "run.json").write_text("{"), "run.json is not JSON"),
            (lambda run: (run / "units.nc").unlink(), "not complete: there is no .*units.nc"),
            (lambda run: (run / "latents.nc").write_bytes(b"CDF or not"), "latents.nc cannot be read"),
            (lambda run: (run / "posterior" / "logvar.nc").write_text(""), "logvar.nc cannot be read"),
        ],
    )
    def test_a_damaged_run(self, study: Study, tmp_path: Path, damage: Any, sentence: str) -> None:
        copy = Path(shutil.copytree(study.folder, tmp_path / "copy"))
        damage(copy)
        with pytest.raises(ValueError, match=sentence):
            Study.load(copy)


def set_record(run: Path, **parts: object) -> None:
    record = json.loads((run / "run.json").read_text())
    record.pop("sha256")
    write_record(run / "run.json", record | parts)


def test_the_history_has_sigma_of_every_epoch(study: Study) -> None:
    history = study.findings.histories["softplus"][0]
    assert history["scale"].sizes == {"epoch": 2, "latent": 2}
    assert bool((history["scale"] > 0).all())


def test_plot_is_a_figure(study: Study) -> None:
    assert "nats per observation" in study.plot().axes[0].get_xlabel()


def test_a_notebook_shows_answer_and_table(study: Study) -> None:
    shown = study._repr_html_()
    assert study.answer in shown
    assert all(f"<th>{guide}</th>" in shown for guide in study.comparison.index)


class TestConfigFile:
    def test_toml_may_name_everything(self, tmp_path: Path) -> None:
        path = tmp_path / "study.toml"
        path.write_text(
            'data = "digits"\nscale = ["abs", "logvar"]\nbatch-size = 32\nhidden = [8]\nout = "a"\n'
        )
        values = read_config(path)
        assert values.pop("out") == "a"
        expected = StudyConfig(scales=("abs", "logvar"), batch_size=32, hidden=(8,))
        assert StudyConfig.from_mapping(values) == expected

    def test_a_record_is_a_configuration(self, study: Study) -> None:
        assert StudyConfig.from_mapping(read_config(study.folder / "run.json")) == study.config

    @pytest.mark.parametrize(
        ("name", "text", "sentence"),
        [
            ("a.toml", "data = ", "a.toml is not TOML"),
            ("a.json", "{", "a.json is not JSON"),
            ("a.json", "[]", "a.json has schema None, .* damaged or foreign"),
            ("a.json", '{"schema": 2}', "schema 2, and this version .* update pyro-vae"),
        ],
    )
    def test_what_cannot_be_read(self, tmp_path: Path, name: str, text: str, sentence: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_config(tmp_path / name)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read_config(tmp_path / "study.toml")
