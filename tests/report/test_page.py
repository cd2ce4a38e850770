"""The page in a real browser: no errors, everything visible, sortable, and it fits a telephone."""

from pathlib import Path

import pytest
import torch

from pyro_vae.study import Study, StudyConfig, run_study
from tests.report.browser import look_at

pytestmark = pytest.mark.arviz


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    config = StudyConfig(
        scales=("logvar", "softplus"), seeds=2, epochs=2, hidden=(16,), latent_dim=2, draws=100,
        gap_observations=3, device="cpu",
    )  # fmt: skip
    study = run_study(config, out=tmp_path_factory.mktemp("runs") / "digits", progress=False)
    torch.set_default_dtype(before)
    return study


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
        for column in ("evidence", "ELBO", "KL"):
            best_last = list(summary.sort_values(column).index)
            assert view["sorted"][column] == [best_last, best_last[::-1]]
        assert view["sorted"]["guide"] == [["logvar", "softplus"], ["softplus", "logvar"]]


def test_what_users_write_is_escaped(study: Study, tmp_path: Path) -> None:
    from pyro_vae.report.html import render_page

    page = render_page(
        title="<script>alert(1)</script>",
        findings=study.findings,
        readings=[],
        pictures=[],
        command="pyro-vae compare '<b>.csv'",
        config={"data": "<b>.csv"},
        record={"device": "cpu", "versions": {}},
    )
    assert "<script>alert" not in page
    assert "<b>" not in page
