"""The README's example runs as written."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.arviz
def test_the_ten_lines_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    encoder, refined = printed.strip().splitlines()[-2:]
    assert encoder.startswith("log evidence")
    assert refined.startswith("log evidence")
    assert (tmp_path / "latents.png").stat().st_size > 5_000
    tree: Any = names["tree"]
    assert tree["posterior"]["z"].sizes == {"chain": 1, "draw": 1000, "observation": 4, "latent": 8}
    fitted: Any = names["fit"]
    assert fitted.engine == "captured"


def test_the_first_screen_has_both_commands() -> None:
    first_screen = README.read_text().splitlines()[:30]
    assert any(line.startswith("make compare") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)
