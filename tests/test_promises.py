"""The page "What it promises" names tests that exist, and nothing twice."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "promises.md"
NAMED = re.findall(r"`(tests/[\w/.]+\.py)::([\w:]+)`", PAGE.read_text())
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "held by" not in line]


def names_in(path: Path) -> set[str]:
    """Functions and methods of a test file, as pytest addresses them."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_test_of_a_promise_exists(path: str, name: str) -> None:
    assert name in names_in(ROOT / path)


def test_every_promise_has_a_test() -> None:
    assert len(ROWS) > 30
    assert all("`tests/" in row and "::test_" in row for row in ROWS)
    assert len({row.split(" | ")[0] for row in ROWS}) == len(ROWS)
