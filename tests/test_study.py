"""The main job, small: what it leaves on disk, that it repeats, and what it says."""

import base64
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
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
from pyro_vae.study import Study, StudyConfig, diagnose_again, make_pair, report_again, run_study
from pyro_vae.study.config import read_config
from pyro_vae.svi import NonFiniteError
from tests import conftest

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


TINY = StudyConfig(
    seeds=1,
    scales=("logvar",),
    epochs=1,
    hidden=(4,),
    latent_dim=1,
    draws=100,
    gap_observations=0,
    device="cpu",
)


@pytest.fixture
def study(digits_study: Study) -> Study:
    return digits_study


@pytest.fixture
def _no_figures() -> Iterator[None]:
    with conftest.without_figures():
        yield


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two guides on forty rows of counts, for what needs a run of its own."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("tiny")
    np.save(folder / "counts.npy", np.random.default_rng(0).poisson(3.0, (40, 4)))
    config = dataclasses.replace(
        TINY,
        data=str(folder / "counts.npy"),
        scales=("logvar", "softplus"),
        latent_dim=2,
        gap_observations=2,
    )
    with conftest.without_figures():
        return run_study(config, out=folder / "run", progress=False)


def test_everything_is_on_disk_and_nothing_else(study: Study) -> None:
    found = {str(p.relative_to(study.folder)) for p in study.folder.rglob("*") if p.is_file()}
    guides = ("logvar", "logstd", "softplus")
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
        assert saved.sizes == {"guide": 3, "seed": 2, "observation": 359}
        assert {"log_evidence", "elbo", "khat", "kl", "reconstruction"} <= set(saved)
        assert list(saved["guide"].values) == ["logvar", "logstd", "softplus"]
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
    assert record["config"]["scales"] == ["logvar", "logstd", "softplus"]
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


@pytest.mark.usefixtures("_no_figures")
def test_the_same_study_gives_the_same_numbers(tiny_study: Study, tmp_path: Path) -> None:
    again = run_study(tiny_study.config, out=tmp_path / "again", progress=False)
    for measure in (*MEASURES, *REFINED, "gaps"):
        xr.testing.assert_equal(getattr(again.findings, measure), getattr(tiny_study.findings, measure))
    assert again.answer == tiny_study.answer
    kept = (tiny_study.folder / "compare.csv").read_text()
    assert (tmp_path / "again" / "compare.csv").read_text() == kept


def test_guides_start_from_the_same_function() -> None:
    """Equal weights and equal σ, whatever the map."""
    train, _ = data.split(data.load("digits"), 0.2, seed=0)
    x = torch.as_tensor(train.x[:5])
    posteriors = []
    for scale in ("logvar", "logstd", "softplus"):
        model, guide = make_pair(SMALL, train, scale, seed=3)
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


@pytest.mark.usefixtures("_no_figures")
def test_one_guide_alone_is_diagnosed_but_not_compared(tmp_path: Path) -> None:
    config = StudyConfig(scales=("softplus-var",), seeds=1, epochs=1, hidden=(8,), latent_dim=2, draws=100)
    study = run_study(config, out=tmp_path / "one", progress=False)
    assert study.comparison is None
    assert not (tmp_path / "one" / "compare.csv").exists()
    assert "there is no other guide to compare it with" in study.answer
    assert list(study.summary().columns) == ["evidence"]
    assert list(study.belief()["q"]) == ["encoder", "refined"]
    assert study.verdict.guide == "softplus-var"


@pytest.mark.usefixtures("_no_figures")
def test_a_guide_that_fails_is_left_out_by_name(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_fit = pyro_vae.study.fits.fit

    def failing(model: object, guide: object, *args: object, **options: object) -> Fit:
        if "LogVar" in repr(guide.scale_map):  # type: ignore[attr-defined]
            raise NonFiniteError("three steps in a row were not finite")
        return real_fit(model, guide, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pyro_vae.study.fits, "fit", failing)
    config = dataclasses.replace(tiny_study.config, scales=("logvar", "logstd", "softplus"))
    study = run_study(config, out=tmp_path / "run", progress=False)
    assert list(study.failures) == ["logvar"]
    assert study.comparison is not None
    assert sorted(study.comparison.index) == ["logstd", "softplus"]
    assert study.answer.endswith("Left out, because a fit failed: logvar.")
    assert Study.load(study.folder).answer == study.answer
    only = StudyConfig(scales=("logvar",), seeds=1, epochs=1)
    with pytest.raises(NonFiniteError, match="no guide could be fitted: logvar, seed 0: three steps"):
        run_study(only, out=tmp_path / "none", progress=False)


@pytest.mark.usefixtures("_no_figures")
def test_a_fit_that_has_run_away_is_left_out_and_no_run_is_made_of_it_alone(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pyro_vae.study.phases.measure_fit

    def measured(fitted: Fit, *args: object) -> object:
        found = real(fitted, *args)  # type: ignore[arg-type]
        if "LogVar" in repr(fitted.guide.scale_map):  # type: ignore[attr-defined]
            found["diagnostics"]["elbo"][:2] = np.nan
        return found

    monkeypatch.setattr(pyro_vae.study.phases, "measure_fit", measured)
    config = tiny_study.config
    study = run_study(config, out=tmp_path / "run", progress=False)
    assert list(study.failures) == ["logvar"]
    assert "the ELBO of 2 of 8 held-out observations is not finite" in study.failures["logvar"]
    assert list(study.summary().index) == ["softplus"]
    alone = dataclasses.replace(config, scales=("logvar",))
    with pytest.raises(NonFiniteError, match=r"logvar, seed 0: the ELBO of 2 of 8 .* run away"):
        run_study(alone, out=tmp_path / "none", progress=False)


def test_a_users_file(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(3.0, (60, 4))
    pd.DataFrame(counts, columns=list("abcd")).to_csv(tmp_path / "counts.csv", index=False)
    config = dataclasses.replace(TINY, data=str(tmp_path / "counts.csv"), likelihood="poisson")
    study = run_study(config, out=tmp_path / "run", progress=False)
    assert study.diagnostics.sizes["observation"] == 12
    assert not (tmp_path / "run" / "figures" / "predictive.png").exists()


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
        assert report_again(Study.load(study.folder)) == study.folder / "report.html"
        assert (study.folder / "report.html").read_text() == before

    @pytest.mark.usefixtures("_no_figures")
    def test_the_fits_are_diagnosed_anew(self, tiny_study: Study, tmp_path: Path) -> None:
        study, copy = tiny_study, Path(shutil.copytree(tiny_study.folder, tmp_path / "copy"))
        same = diagnose_again(Study.load(copy), progress=False)
        np.testing.assert_allclose(
            same.diagnostics["log_evidence"], study.diagnostics["log_evidence"], rtol=1e-10
        )
        more = diagnose_again(Study.load(copy), draws=200, gap_observations=0, progress=False)
        assert more.diagnostics.attrs["draws"] == 200
        assert more.findings.gaps is None
        assert not (copy / "gaps.nc").exists()
        again = Study.load(copy)
        assert again.config.draws == 200
        xr.testing.assert_identical(again.diagnostics, more.diagnostics)

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


@pytest.mark.usefixtures("_no_figures")
class TestWhatIsThere:
    """A run never replaces another."""

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        path = tmp_path / "t.csv"
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(size=(20, 2)), columns=["a", "b"]).assign(kind=["x", "y"] * 10)
        frame.to_csv(path)
        return path

    def test_the_same_run_is_shown_and_another_one_refused(self, table: Path, tmp_path: Path) -> None:
        config = dataclasses.replace(TINY, data=str(table), label="kind")
        first = run_study(config, out=tmp_path / "run", progress=False)
        stamps = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.is_file()}
        again = run_study(config, out=tmp_path / "run", progress=False)
        assert again.answer == first.answer
        with pytest.raises(ValueError, match=r"holds another run; name a new folder .*--overwrite"):
            run_study(dataclasses.replace(config, epochs=2), out=tmp_path / "run", progress=False)
        table.write_text(table.read_text() + "20,0.5,0.25,x\n")
        with pytest.raises(ValueError, match="holds another run"):
            run_study(config, out=tmp_path / "run", progress=False)
        assert stamps == {p: p.stat().st_mtime_ns for p in first.folder.rglob("*") if p.is_file()}
        over = run_study(config, out=tmp_path / "run", progress=False, overwrite=True)
        assert json.loads((over.folder / "run.json").read_text())["read"]["rows"] == 21

    def test_what_was_read_is_said_before_and_kept(
        self, table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = dataclasses.replace(TINY, data=str(table), label="kind")
        with caplog.at_level("INFO", "pyro_vae"):
            study = run_study(config, out=tmp_path / "run", progress=False)
        said = next(message for message in caplog.messages if message.startswith("t: "))
        told = (
            "20 rows, 2 columns (a, b)",
            "'kind' (the label)",
            "'' (it numbers the rows)",
            "16 rows to train",
        )
        assert all(words in said for words in told), said
        read = json.loads((study.folder / "run.json").read_text())["read"]
        assert (read["columns"], read["train"], read["held_out"]) == (["a", "b"], 16, 4)
        assert (read["likelihood"], read["rows_dropped"]) == ("normal", 0)
        page = (study.folder / "report.html").read_text()
        assert "not all values are non-negative integers" in page
        assert "16, 4" in page

    def test_an_interrupted_run_goes_on_with_the_same_call(
        self, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = dataclasses.replace(TINY, data=str(table), label="kind")
        with monkeypatch.context() as broken:
            broken.setattr(pyro_vae.study.completion, "examine", _raises)
            with pytest.raises(KeyboardInterrupt):
                run_study(config, out=tmp_path / "run", progress=False)
        record = tmp_path / "run" / "fits" / "logvar-0" / "fit.json"
        before = record.stat().st_mtime_ns
        run_study(config, out=tmp_path / "run", progress=False)
        assert record.stat().st_mtime_ns == before

    @pytest.mark.parametrize(("rows", "remedy"), [(5, "--held-out 0.4"), (3, "more rows")])
    def test_too_few_rows_are_named_before_anything_is_fitted(
        self, rows: int, remedy: str, table: Path, tmp_path: Path
    ) -> None:
        table.write_text("".join(table.read_text().splitlines(keepends=True)[: rows + 1]))
        config = dataclasses.replace(TINY, data=str(table), label="kind")
        with pytest.raises(ValueError, match=f"held_out is 0.2 and t has {rows} rows.*{remedy}"):
            run_study(config, out=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    def test_five_rows_are_enough_where_two_are_held_out(self, table: Path, tmp_path: Path) -> None:
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:6]))
        config = dataclasses.replace(TINY, data=str(table), label="kind", held_out=0.4)
        study = run_study(config, out=tmp_path / "run", progress=False)
        assert study.diagnostics.sizes["observation"] == 2


def _raises(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
