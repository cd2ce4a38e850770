"""The notebooks run from their first cell to their last, and are kept as they were executed."""

import json
import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from pyro_vae import plots

pytestmark = pytest.mark.arviz
DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    names: dict[str, Any] = {"__name__": path.stem}
    for i, cell in enumerate(cells(path)):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {i}", "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_what_they_made(path: Path) -> None:
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "Traceback" not in json.dumps(outputs)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["believe", "counts", "own_model"]


def test_the_gallery_shows_every_public_figure() -> None:
    page = (DOCS / "gallery.md").read_text()
    for name in plots.__all__:
        assert re.search(rf"^`{name}\(", page, re.MULTILINE), f"the gallery has no call of {name}"
        picture = DOCS / "images" / "gallery" / f"{name}.png"
        assert f"images/gallery/{name}.png" in page
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_tutorials_have_pictures() -> None:
    for page in ("start", "guides", "models", "fitting", "scale_maps", "diagnostics", "refined", "comparing"):
        assert "](images/" in (DOCS / f"{page}.md").read_text(), page
