import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_vae.svi import fit
from pyro_vae.svi.engines.native import build
from pyro_vae.svi.engines.steps import CannotError
from tests.svi.engines.native.cases import needs_compiler
from tests.svi.pairs import PAIRS, observations

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "pyro-vae"


@needs_compiler
def test_a_build_is_kept_and_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.load(SOURCE).answer() == 42
    (entry,) = folder.iterdir()

    def fail(*_: object) -> None:
        raise AssertionError("built twice")

    monkeypatch.setattr(build, "_compile", fail)
    assert build.load(SOURCE).answer() == 42
    assert list(folder.iterdir()) == [entry]


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "other"])
def test_a_damaged_entry_is_built_again(folder: Path, damage: str) -> None:
    build.load(SOURCE)
    (entry,) = folder.iterdir()
    content = entry.read_bytes()
    entry.unlink()  # a loaded library must not change under the process
    entry.write_bytes({"truncated": content[:500], "empty": b"", "other": b"x" * len(content)}[damage])
    assert build.load(SOURCE).answer() == 42
    (entry,) = folder.iterdir()
    assert len(entry.read_bytes()) > 500


@needs_compiler
@pytest.mark.parametrize("what", ["_processor", "_version", "_flags"])
def test_another_processor_compiler_or_flag_is_another_entry(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    build.load(SOURCE)
    other = {
        "_processor": lambda: "other",
        "_version": lambda _: "other",
        "_flags": lambda: ["-shared", "-fPIC"],
    }
    monkeypatch.setattr(build, what, other[what])
    assert build.load(SOURCE).answer() == 42
    assert len(list(folder.iterdir())) == 2


@needs_compiler
def test_two_processes_build_at_once(folder: Path) -> None:
    program = f"from pyro_vae.svi.engines.native import build; print(build.load({SOURCE!r}).answer())"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [b"42\n"] * 2
    assert all(entry.suffix == ".so" for entry in folder.iterdir())


def test_without_a_compiler_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotError, match=r"there is no C\+\+ compiler: install g\+\+"):
        build.load(SOURCE)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(CannotError, match="did not run"):
        build.load(SOURCE)


@needs_compiler
def test_the_compiler_s_own_words_are_passed_on(folder: Path) -> None:
    with pytest.raises(CannotError, match=r"failed: .*error"):
        build.load("this is not C++")
    assert list(folder.iterdir()) == []


@needs_compiler
def test_a_folder_that_cannot_be_made_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert build.load(SOURCE).answer() == 42
    assert isinstance(build.load(SOURCE), ctypes.CDLL)


def test_no_flag_changes_the_arithmetic_of_the_process() -> None:
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(build._flags())


BROKEN = {
    "unbalanced": ("g++ 'x", "No closing quotation"),
    "nothing": ("/bin/true", "failed"),
    "binary": ("{bin}/speaks", "failed: .*error"),
    "empty": ("{bin}/empty", "has made has no 'answer'"),
    "no library": ("{bin}/text", "cannot be kept and loaded"),
    "bytes": ("/nowhere/\udcff", "did not run"),
}


@needs_compiler
@pytest.mark.parametrize("name", BROKEN)
def test_compilers_that_are_none(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says what is no UTF-8, ones that make an empty library or none: a sentence, nothing stays."""
    programs = {
        "speaks": "printf '\\377\\376 error \\377\\n' >&2; exit 1",
        "empty": 'for last; do :; done; echo | g++ -x c++ -shared -fPIC - -o "$last"',
        "text": 'for last; do :; done; echo nothing > "$last"',
    }
    for file, text in programs.items():
        path = tmp_path / file
        path.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && {{ printf '\\377\\n'; exit; }}\n{text}\n")
        path.chmod(0o700)
    command, told = BROKEN[name]
    monkeypatch.setenv("CXX", command.format(bin=tmp_path))
    with pytest.raises(CannotError, match=f"cannot be built: .*{told}"):
        build.load(SOURCE, "answer")
    assert not folder.exists() or list(folder.iterdir()) == []


@needs_compiler
def test_an_entry_without_the_function_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load(SOURCE, "answer")
    (entry,) = folder.iterdir()
    build.load("int other;")
    other = next(path for path in folder.iterdir() if path != entry)
    entry.unlink()
    bad = other.rename(folder / f"{entry.stem.split('-')[0]}-{other.stem.split('-')[1]}.so")
    assert build.load(SOURCE, "answer").answer() == 42
    assert list(folder.iterdir()) == [entry]
    assert bad != entry


@needs_compiler
@pytest.mark.parametrize("command", ["g++ 'x", "/bin/true"])
def test_a_fit_without_a_build_is_captured(
    command: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", command)
    pair = PAIRS["normal"]()
    fitted = fit(pair.model, pair.guide, observations(32), epochs=1, engine="native", progress=False)
    assert fitted.engine == "captured"
    assert "cannot be built: " in caplog.text
