"""The page in a real browser: no errors, everything visible, sortable, and it fits a telephone."""

import dataclasses
import re
from pathlib import Path

import pytest

from pyro_vae.report.pictures import draw_figures
from pyro_vae.study import Study
from tests.conftest import coarse_figures
from tests.report.browser import look_at, printed_pages

pytestmark = pytest.mark.arviz


@pytest.fixture
def study(digits_study: Study) -> Study:
    return digits_study


def test_in_a_browser(study: Study, tmp_path: Path) -> None:
    (narrow, wide), errors = look_at(study.folder / "report.html", (400, 1280), tmp_path)
    assert errors == []
    for view in (narrow, wide):
        assert view["scroll"] <= view["width"], "the page scrolls sideways"
        assert len(view["images"]) == 14
        hidden = [alt for alt, visible in view["images"] if not visible]
        assert not hidden
        assert study.answer in view["words"]
        summary = study.summary()
        for column in ("evidence", "weight"):
            best_last = list(summary.sort_values(column).index)
            assert view["sorted"][column] == [best_last, best_last[::-1]]
        by_name = sorted(study.config.scales)
        assert view["sorted"]["guide"] == [by_name, by_name[::-1]]


def test_on_paper(study: Study, tmp_path: Path) -> None:
    assert 1 <= printed_pages(study.folder / "report.html", tmp_path) <= 6


def test_the_page_says_when_and_on_how_much(study: Study) -> None:
    page = (study.folder / "report.html").read_text()
    assert "2 guides × 2 seeds · 1,797 observations of 64 numbers: 1,438 to train on, 359 held out" in page
    assert re.search(r"finished \d{4}-\d\d-\d\d \d\d:\d\d UTC, \d+ min \d+ s after it was begun", page)


def test_one_guide_is_not_asked_whether_it_is_better(study: Study, tmp_path: Path) -> None:
    one = {name: getattr(study.findings, name) for name in ("diagnostics", "calibration", "units", "latents")}
    alone = dataclasses.replace(
        study.findings,
        **{name: given.isel(guide=[0]) for name, given in one.items()},
        histories={"logvar": study.findings.histories["logvar"]},
        posteriors={"logvar": study.findings.posteriors["logvar"]},
        refined=None,
        refined_calibration=None,
        gaps=None,
    )
    with coarse_figures():
        drawn = draw_figures(tmp_path, alone)
    assert "How did the fit go?" in {picture.section for picture in drawn}
    assert "Which guide explains the data better?" in (study.folder / "report.html").read_text()


def test_what_users_write_is_escaped(study: Study, tmp_path: Path) -> None:
    from pyro_vae.report.html import render_page

    page = render_page(
        title="<script>alert(1)</script>",
        findings=study.findings,
        verdict=dataclasses.replace(
            study.verdict, sentences=("<b>one</b>", "<b>two</b>"), next_command="pyro-vae diagnose '<b>'"
        ),
        readings=[],
        pictures=[],
        command="pyro-vae compare '<b>.csv'",
        config={"data": "<b>.csv"},
        record={"device": "cpu", "versions": {}},
    )
    assert "<script>alert" not in page
    assert "<b>" not in page
