import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyro_vae.svi.engines.native import build, cache
from tests.svi.engines.native.cases import needs_compiler

NOW = time.time()


def source(answer: int) -> str:
    return f'extern "C" int answer() {{ return {answer}; }}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return cache.cache_folder()


def add(folder: Path, key: str, used_ago: float, *, size: int = 1000, suffix: str = "-content.so") -> Path:
    path = folder / f"{key}{suffix}"
    path.write_bytes(b"x" * size)
    os.utime(path, (NOW - used_ago, NOW - used_ago))
    return path


def kept(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.iterdir()}


def test_what_was_not_used_for_longest_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 3000)
    for i, key in enumerate("abcde"):
        add(folder, key, used_ago=100 - i)
    cache.mark_used(folder / "a-content.so")
    cache.prune(folder)
    assert kept(folder) == {"a", "d", "e"}
    cache.prune(folder)
    assert kept(folder) == {"a", "d", "e"}


def test_within_the_bound_nothing_goes(folder: Path) -> None:
    for i, key in enumerate("abcde"):
        add(folder, key, used_ago=1e8 * i)
    cache.prune(folder)
    assert kept(folder) == set("abcde")


def test_a_measurement_goes_with_its_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 1010)
    add(folder, "old", used_ago=100)
    add(folder, "old", used_ago=100, size=6, suffix="-2.6.0-4.speedup")
    add(folder, "new", used_ago=1)
    measured = add(folder, "new", used_ago=1000, size=6, suffix="-2.6.0-4.speedup")
    cache.prune(folder)
    assert kept(folder) == {"new"}
    assert measured.exists()


def test_a_build_that_was_killed_leaves_nothing_for_long(folder: Path) -> None:
    for name, ago in (("building-dead", 2 * cache.ABANDONED_AFTER), ("building-alive", 1.0)):
        (folder / name).mkdir()
        (folder / name / "step.cpp").touch()
        os.utime(folder / name, (NOW - ago, NOW - ago))
    cache.prune(folder)
    assert [path.name for path in folder.iterdir()] == ["building-alive"]


@needs_compiler
def test_builds_keep_to_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load(source(0))
    (entry,) = folder.iterdir()
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * entry.stat().st_size + 100)
    first = build.load(source(1))
    assert len(list(folder.iterdir())) == 2
    for path in folder.iterdir():
        os.utime(path, (NOW - 100, NOW - 100))
    assert build.load(source(0)).answer() == 0  # used, so it stays
    build.load(source(2))
    assert entry.exists()
    assert len(list(folder.iterdir())) == 2
    assert first.answer() == 1  # a loaded library stays when its file is gone
    assert build.load(source(1)).answer() == 1
    assert len(list(folder.iterdir())) == 2


def test_two_processes_prune_at_once(folder: Path) -> None:
    for i in range(2000):
        add(folder, f"{i:04}", used_ago=10_000 - i)
        add(folder, f"{i:04}", used_ago=10_000 - i, size=5, suffix="-2.6.0-4.speedup")
    program = (
        "from pyro_vae.svi.engines.native import cache; cache.MOST_BYTES = 10_050; "
        "print(flush=True); input(); "
        "cache.prune(cache.cache_folder())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    assert [process.returncode for process in running] == [0, 0]
    assert kept(folder) == {f"{i:04}" for i in range(1990, 2000)}


@needs_compiler
def test_an_entry_that_goes_while_it_is_read_is_built_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(source(1))
    read_bytes = Path.read_bytes

    def too_late(path: Path) -> bytes:
        if path.parent == folder:
            path.unlink()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", too_late)
    assert build.load(source(1)).answer() == 1
    assert len(list(folder.iterdir())) == 1


@needs_compiler
def test_what_cannot_be_changed_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that is another user's, or was made read-only meanwhile."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    build.load(source(1))
    add(folder, "old", used_ago=100)
    monkeypatch.setattr(cache, "MOST_BYTES", 0)
    monkeypatch.setattr(os, "utime", refuse)
    assert build.load(source(1)).answer() == 1
    monkeypatch.setattr(Path, "unlink", refuse)
    cache.prune(folder)
    assert len(list(folder.iterdir())) == 2
    cache.prune(folder / "nowhere")


@needs_compiler
def test_a_disk_that_is_full_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(build.CannotError, match=r"cannot be kept and loaded in .*: no space left"):
        build.load(source(1))
    assert list(folder.iterdir()) == []


def test_the_folder_of_a_process_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    program = "from pyro_vae.svi.engines.native import cache; print(cache.cache_folder())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("/")
    assert not Path(done.stdout.strip()).exists()
