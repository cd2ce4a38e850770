"""The pages are true: their Python blocks run, and print what stands below them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pyro
import pytest
import torch

from pyro_vae import scales
from pyro_vae.guides.scales import registry

OWN_SEEDS = True


pytestmark = pytest.mark.arviz
DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if "```python" in path.read_text())

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.DOTALL | re.MULTILINE
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def same(printed: str, promised: str) -> bool:
    """Equal text; numbers within three units of their last digit, for another processor's rounding."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", promised).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(promised), strict=True)
    return all(abs(float(a) - float(b)) <= 3 * last_digit(b) for a, b in pairs)


def last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - decimals)) if decimals or exponent else 0.0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_MAPS", dict(registry._MAPS))  # pages register maps
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    text = page.read_text()
    names: dict[str, Any] = {"__name__": page.stem}
    for block in BLOCK.finditer(text):
        line = text[: block.start("code")].count("\n")
        exec(compile("\n" * line + block["code"], str(page), "exec"), names)
        printed, promised = capsys.readouterr().out, block["printed"]
        where = f"{page.name}:{line} prints\n{printed}\nand the page says\n{promised}"
        assert same(printed, promised or ""), where


def test_the_comparison_of_printed_text() -> None:
    assert same("k̂ 0.31, 5 of 9", "k̂ 0.30, 5 of 9")
    assert not same("k̂ 0.36, 5 of 9", "k̂ 0.30, 5 of 9")
    assert not same("k̂ 0.30, 6 of 9", "k̂ 0.30, 5 of 9")
    assert not same("k̂ 0.30 ok", "k̂ 0.30")


def test_the_table_of_scale_maps_is_the_librarys() -> None:
    text = (DOCS / "scale_maps.md").read_text()
    table = re.search(r"<!-- scales\.table\(\).*?\n(.*?)<!-- end", text, re.DOTALL)
    assert table is not None
    columns = ("name", "map", "sigma", "sigma_at_0", "slope_at_0", "range", "remark")
    code = ("name", "map")
    rows = [
        "| " + " | ".join(f"`{row[c]}`" if c in code else row[c].replace("|", r"\|") for c in columns) + " |"
        for row in scales.table()
    ]
    assert table[1].splitlines()[2:] == rows, "it must be\n" + "\n".join(rows)


def figure(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "figures" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_scale_maps_can_be_drawn(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    module = figure("scale_maps")
    assert {*module.SMOOTH, *module.LIMITED} == set(scales.names())
    module.draw(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 50_000


def test_the_house_is_drawn_from_todays_imports() -> None:
    module = figure("house")
    told = re.compile(r"<title>(.*)</title>")
    today = module.svg()
    drawn, now = (told.search(text) for text in (module.PICTURE.read_text(), today))
    assert drawn is not None
    assert now is not None
    assert drawn[1] == now[1], "python docs/figures/house.py draws it anew"
    ElementTree.fromstring(today)


def test_links_and_examples_that_pages_name_exist() -> None:
    examples = {path.name for path in (DOCS.parent / "examples").glob("*.py")}
    for page in DOCS.glob("*.md"):
        text = page.read_text()
        for target in re.findall(r"\]\((?!http)([^)#\s]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        named = set(re.findall(r"`(?:examples/)?(\w+\.py)`", text))
        assert {name for name in named if f"examples/{name}" in text} <= examples, page.name
    listed = set(re.findall(r"^\| `(\w+\.py)`", (DOCS / "start.md").read_text(), re.MULTILINE))
    assert listed == examples
