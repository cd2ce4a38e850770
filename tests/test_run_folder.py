from pathlib import Path

import pytest

from pyro_vae.run_folder import claim


def test_a_new_folder_is_made_with_its_places(tmp_path: Path) -> None:
    folder = claim(tmp_path / "runs" / "new")
    assert sorted(p.name for p in folder.root.iterdir()) == ["figures", "fits", "posterior"]
    assert folder.fit("logvar", 2) == tmp_path / "runs" / "new" / "fits" / "logvar-2"


def test_an_earlier_run_is_replaced_whole(tmp_path: Path) -> None:
    folder = claim(tmp_path / "run")
    folder.write_record({}, "cpu", {})
    (folder.root / "fits" / "stale").mkdir()
    claim(tmp_path / "run")
    assert list((tmp_path / "run" / "fits").iterdir()) == []
    assert not folder.record.exists()


@pytest.mark.parametrize("beside_a_run", [False, True])
def test_something_else_is_left_alone(tmp_path: Path, beside_a_run: bool) -> None:
    if beside_a_run:
        claim(tmp_path).write_record({}, "cpu", {})
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\); name a new or empty folder"):
        claim(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "run.json").exists() == beside_a_run


def test_names_of_ours_without_a_record_are_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    with pytest.raises(ValueError, match=r"holds something else \(figures\)"):
        claim(tmp_path)
    assert (tmp_path / "figures" / "mine.png").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output folder .*file cannot be written \(File exists\)"):
        claim(tmp_path / "file")
