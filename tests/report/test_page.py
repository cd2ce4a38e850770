"""The page in a real browser: no errors, everything visible, sortable, and it fits a telephone."""

import dataclasses
from pathlib import Path

import pytest

from pyro_vae.study import Study
from tests.report.browser import look_at

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
