import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_vae.svi.engines.native import build, cache
from tests.svi.engines.native.cases import needs_compiler

NOW = time.time()

IMPORTED = f"import sys; sys.path.insert(0, {str(Path(cache.__file__).parent)!r}); import cache"
"""The module by itself, without torch."""


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
        f"{IMPORTED}; cache.MOST_BYTES = 10_050; "
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
    program = f"{IMPORTED}; print(cache.cache_folder())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("/")
    assert not Path(done.stdout.strip()).exists()


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "pyro-vae"
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the process, where it can be seen."""
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "private"))
    (tmp_path / "private").mkdir()
    cache._folder_of_process.cache_clear()


def others_may_write(folder: Path) -> None:
    folder.chmod(0o777)


def a_group_may_write(folder: Path) -> None:
    folder.chmod(0o770)


def everybody_may_replace_it(folder: Path) -> None:
    folder.parent.chmod(0o777)


def another_owns_it(folder: Path) -> None:
    os.chown(folder, 65534, -1)


@needs_compiler
@pytest.mark.usefixtures("_private")
@pytest.mark.parametrize(
    "open_up", [others_may_write, a_group_may_write, everybody_may_replace_it, another_owns_it]
)
def test_what_others_may_have_written_is_not_loaded(
    open_up: Callable[[Path], None], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if open_up is another_owns_it and os.geteuid():
        pytest.skip("only root gives files away")
    build.load(source(1))
    (entry,) = folder.iterdir()
    planted = build.load(source(2))  # under the name of the first
    other = next(path for path in folder.iterdir() if path != entry)
    content = other.read_bytes()
    other.unlink()
    entry.unlink()
    (folder / f"{entry.stem.split('-')[0]}-{build._digest(content)}.so").write_bytes(content)
    open_up(folder)
    assert build.load(source(1)).answer() == 1
    assert build.load(source(1)).answer() == 1
    assert planted.answer() == 2
    assert cache.cache_folder().parent == tmp_path / "private"
    (said,) = caplog.messages  # once
    assert "others may" in said
    assert "give XDG_CACHE_HOME, a folder of your own" in said


@needs_compiler
def test_a_file_that_others_may_have_written_goes(folder: Path) -> None:
    build.load(source(1))
    (entry,) = folder.iterdir()
    entry.chmod(0o666)
    assert build.load(source(1)).answer() == 1
    (entry,) = folder.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o700
    content = entry.read_bytes()
    entry.rename(entry.parent.parent / "elsewhere")
    entry.symlink_to(entry.parent.parent / "elsewhere")
    assert build.load(source(1)).answer() == 1
    assert not entry.is_symlink()
    assert entry.read_bytes() == content
