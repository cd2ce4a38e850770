"""Who may write into a run's folder, and what a name in a run's file may reach."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pyro_vae.run_folder import RunFolder, claim


def claimed(root: Path, config: dict[str, Any] | None = None) -> AbstractContextManager[RunFolder]:
    return claim(root, config or {}, "cpu")


def test_a_new_folder_is_made_with_its_places(tmp_path: Path) -> None:
    with claimed(tmp_path / "runs" / "new") as folder:
        pass
    names = sorted(p.name for p in folder.root.iterdir())
    assert names == ["figures", "fits", "posterior", "run.json"]
    assert folder.fit("logvar", 2) == tmp_path / "runs" / "new" / "fits" / "logvar-2"


def test_an_earlier_run_is_replaced_whole_if_that_is_said_and_else_left_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", {"epochs": 1}) as folder:
        (folder.root / "fits" / "stale").mkdir()
    before = folder.record.read_bytes()
    with pytest.raises(ValueError, match=r"holds another run; name a new folder by out=.*--overwrite"):
        claimed(tmp_path / "run", {"epochs": 2}).__enter__()
    assert (folder.root / "fits" / "stale").is_dir()
    assert folder.record.read_bytes() == before
    with claim(tmp_path / "run", {"epochs": 2}, "cpu", overwrite=True):
        assert list((tmp_path / "run" / "fits").iterdir()) == []
        assert folder.read_record()["config"] == {"epochs": 2}


@pytest.mark.parametrize("beside_a_run", [False, True])
def test_something_else_is_left_alone(tmp_path: Path, beside_a_run: bool) -> None:
    if beside_a_run:
        with claimed(tmp_path):
            pass
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\); name a new or empty folder"):
        claimed(tmp_path).__enter__()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "run.json").exists() == beside_a_run


def test_names_of_ours_without_a_record_are_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(figures\)"):
        claimed(tmp_path).__enter__()
    assert (tmp_path / "figures" / "mine.png").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output folder .*file cannot be written \(File exists\)"):
        claimed(tmp_path / "file").__enter__()
