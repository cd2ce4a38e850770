"""What the command prints is plain text: whatever a folder is called, whatever the terminal can show."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyro_vae.cli import app, output
from pyro_vae.cli.terminal import PlainText
from pyro_vae.run_folder import RunFolder
from pyro_vae.storage.records import write_record
from pyro_vae.study import Study
from tests import processes

pytestmark = pytest.mark.usefixtures("_parsed_once")
NAMES = ("[b]bold[/b] :smile: [red on σ", "[/x]", "\x1b[31mred\na\udcff\udcfe\u202eevil")


@pytest.fixture(scope="module")
def whole(small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file with a name that could colour a terminal."""
    run = Path(shutil.copytree(small_study.folder, tmp_path_factory.mktemp("printed") / "run"))
    record = RunFolder(run).read_record()
    record["config"]["data"] = "\x1b[7m[b]\udcff.npy"
    write_record(run / "run.json", {"schema": 1, **record})
    return run


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)  # [/x] is x] in a folder [
    (tmp_path / name).symlink_to(whole)
    shown = name if name.isprintable() else repr(name)[1:-1]
    done = CliRunner().invoke(app, ["resume", str(tmp_path / name)])
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1].replace("'\"'\"'", "'")  # as a shell is told of a quotation mark
    assert last.rstrip("'").endswith(f"/{shown}/report.html")
    unbroken = "".join(done.stdout.split())  # a title is as wide as its table
    assert r"\x1b[7m[b]\udcff.npy,held-out" in unbroken
    assert "\x1b" not in done.stdout
    missing = CliRunner().invoke(app, ["resume", str(tmp_path / f"no{name}")])
    assert missing.exit_code == 2
    assert missing.stderr.count("\n") == 1
    assert f"no{shown} holds no run" in missing.stderr


def test_json_has_names_to_the_letter(whole: Path, tmp_path: Path) -> None:
    named = tmp_path / NAMES[-1]
    named.symlink_to(whole)
    done = CliRunner().invoke(app, ["resume", str(named), "--json"])
    assert json.loads(done.stdout)["folder"] == str(named)


def test_the_log_is_plain_too() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s is read\nagain", ("\x1b[31m",), None)
    assert PlainText("%(message)s").format(record) == "\\x1b[31m is read\nagain"


def command(
    *words: str | Path, shell: str = '"$@"', **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """In a process of its own, by way of a shell that may close or replace its streams."""
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "pyro_vae", *words],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_a_terminal_of_ascii() -> None:
    done = command("scales", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"d log sigma / d raw" in done.stdout
    for words in (["compare", "--help"], ["diagnose", "nowhere-\u202e"]):
        code, output, errors = processes.command(*words, encoding="ascii").end()
        assert code == (2 if words[0] == "diagnose" else 0), errors
        assert (output + errors).isascii()
        assert "Traceback" not in errors
        assert output if words[0] != "diagnose" else "holds no run" in errors


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        ('"$@" >&-', "standard output: Bad file descriptor"),
        ('"$@" --json >/dev/full', "standard output: No space left on device"),
    ],
)
def test_a_standard_output_that_takes_nothing(shell: str, told: str) -> None:
    done = command("scales", shell=shell)
    assert done.returncode == 1
    assert done.stderr.decode() == f"pyro-vae: {told}\n"


def test_a_reader_that_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        words = [sys.executable, "-m", "pyro_vae", "scales"]
        done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr == b"pyro-vae: standard output: Broken pipe\n"


def test_a_closed_standard_error() -> None:
    done = command("diagnose", "nowhere", shell='"$@" 2>&-')
    assert (done.returncode, done.stdout) == (2, b"")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "from pyro_vae.cli import terminal; terminal.occupy_standard_streams(); "
        "file = open('file', 'w'); assert file.fileno() > 2, file.fileno()"
    )
    words = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(words, cwd=tmp_path, check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
def test_every_encoding_takes_every_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    output._write("σ k̂ 字 \N{PILE OF POO}\n")
    assert stream.buffer.getvalue()  # type: ignore[attr-defined]
