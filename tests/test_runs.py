"""What becomes of runs: guides that fail, and folders that hold one already."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae.study.completion
from pyro_vae import Fit
from pyro_vae.study import Study, StudyConfig, run_study
from pyro_vae.svi import NonFiniteError
from tests import conftest

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


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    with conftest.briefly():
        yield


@pytest.fixture
def counts(small_study: Study) -> StudyConfig:
    return dataclasses.replace(TINY, data=small_study.config.data, latent_dim=2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(20, 2)), columns=["a", "b"]).assign(kind=["x", "y"] * 10)
    frame.to_csv(path)
    return path


def test_one_guide_alone_is_diagnosed_but_not_compared(tmp_path: Path) -> None:
    """On a user's file, which holds no images."""
    frame = pd.DataFrame(np.random.default_rng(0).poisson(3.0, (60, 4)), columns=list("abcd"))
    frame.to_csv(tmp_path / "counts.csv", index=False)
    data = str(tmp_path / "counts.csv")
    config = dataclasses.replace(
        TINY, data=data, likelihood="poisson", scales=("softplus-var",), latent_dim=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyro_vae.study.completion, "draw_figures", pyro_vae.report.pictures.draw_figures)
        study = run_study(config, out=tmp_path / "one", progress=False)
    assert study.diagnostics.sizes["observation"] == 12
    assert (study.folder / "figures" / "khat.png").exists()
    assert not (study.folder / "figures" / "predictive.png").exists()
    assert study.comparison is None
    assert not (study.folder / "compare.csv").exists()
    assert "there is no other guide to compare it with" in study.answer
    assert list(study.summary().columns) == ["evidence"]
    assert list(study.belief()["q"]) == ["encoder", "refined"]
    assert study.verdict.guide == "softplus-var"


def test_guides_that_fail_are_left_out_by_name(
    counts: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cannot be fitted, and one has run away."""
    real_fit, real_measures = pyro_vae.study.fits.fit, pyro_vae.study.phases.measure_fit

    def failing(model: object, guide: object, *args: object, **options: object) -> Fit:
        if "LogVar" in repr(guide.scale_map):  # type: ignore[attr-defined]
            raise NonFiniteError("three steps in a row were not finite")
        return real_fit(model, guide, *args, **options)  # type: ignore[arg-type]

    def measured(fitted: Fit, *args: object) -> object:
        found = real_measures(fitted, *args)  # type: ignore[arg-type]
        if "LogStd" in repr(fitted.guide.scale_map):  # type: ignore[attr-defined]
            found["diagnostics"]["elbo"][:2] = np.nan
        return found

    monkeypatch.setattr(pyro_vae.study.fits, "fit", failing)
    monkeypatch.setattr(pyro_vae.study.phases, "measure_fit", measured)
    config = dataclasses.replace(counts, scales=("logvar", "logstd", "softplus", "abs"))
    study = run_study(config, out=tmp_path / "run", progress=False)
    assert list(study.failures) == ["logvar", "logstd"]
    assert "the ELBO of 2 of 12 held-out observations is not finite" in study.failures["logstd"]
    assert study.comparison is not None
    assert sorted(study.comparison.index) == sorted(study.summary().index) == ["abs", "softplus"]
    assert study.answer.endswith("Left out, because a fit failed: logvar, logstd.")
    assert Study.load(study.folder).answer == study.answer
    unfitted, run_away = (dataclasses.replace(counts, scales=(name,)) for name in ("logvar", "logstd"))
    with pytest.raises(NonFiniteError, match="no guide could be fitted: logvar, seed 0: three steps"):
        run_study(unfitted, out=tmp_path / "none", progress=False)
    with pytest.raises(NonFiniteError, match=r"logstd, seed 0: the ELBO of 2 of 12 .* run away"):
        run_study(run_away, out=tmp_path / "no", progress=False)


class TestWhatIsThere:
    """A run never replaces another."""

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

    def test_an_interrupted_run_goes_on_with_the_same_call(
        self, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What was read is said before anything is fitted, and kept."""
        config = dataclasses.replace(TINY, data=str(table), label="kind")
        with monkeypatch.context() as broken, caplog.at_level("INFO", "pyro_vae"):
            broken.setattr(pyro_vae.study.completion, "examine", _raises)
            with pytest.raises(KeyboardInterrupt):
                run_study(config, out=tmp_path / "run", progress=False)
        said = next(message for message in caplog.messages if message.startswith("t: "))
        told = (
            "20 rows, 2 columns (a, b)",
            "'kind' (the label)",
            "'' (it numbers the rows)",
            "16 rows to train",
        )
        assert all(words in said for words in told), said
        record = tmp_path / "run" / "fits" / "logvar-0" / "fit.json"
        before = record.stat().st_mtime_ns
        study = run_study(config, out=tmp_path / "run", progress=False)
        assert record.stat().st_mtime_ns == before
        read = json.loads((study.folder / "run.json").read_text())["read"]
        assert (read["columns"], read["train"], read["held_out"]) == (["a", "b"], 16, 4)
        assert (read["likelihood"], read["rows_dropped"]) == ("normal", 0)
        page = (study.folder / "report.html").read_text()
        assert "not all values are non-negative integers" in page
        assert "16, 4" in page

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
