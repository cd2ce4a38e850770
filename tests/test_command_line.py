"""What can be typed and what is seen of it: choices, versions, refusals, and a terminal of 80 columns."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pyro_vae import scales
from pyro_vae.cli import app
from pyro_vae.cli.choices import CHOICES
from pyro_vae.cli.output import _folded
from pyro_vae.data.named import names
from pyro_vae.models import likelihoods
from pyro_vae.models.networks import ACTIVATIONS
from pyro_vae.study.config import FAMILIES, OBJECTIVES, SCHEDULES
from pyro_vae.version import __version__


def invoked(*words: str, columns: int = 80) -> str:
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [*words])
    return done.stdout + done.stderr


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"pyro-vae {__version__}\n")


def test_choices_are_those_of_the_library() -> None:
    assert CHOICES["scale"] == tuple(scales.names())
    assert CHOICES["guide"] == FAMILIES
    assert CHOICES["objective"] == OBJECTIVES
    assert CHOICES["schedule"] == SCHEDULES
    assert sorted(CHOICES["activation"]) == sorted(ACTIVATIONS)
    assert sorted(CHOICES["likelihood"]) == sorted(likelihoods.names())
    assert CHOICES["data"] == tuple(names())


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_help_shows_every_choice_and_breaks_no_word(command: str) -> None:
    shown = invoked(command, "--help")
    words = set(re.findall(r"[\w-]+", shown))
    for option, choices in CHOICES.items():
        assert set(choices) <= words, f"--{option} at 80 columns"
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("compare digits --scale soft", {"softplus", "softplus-var", "softclip"}),
        ("fit digits --guide ", {"normal", "multivariate", "flow"}),
        ("compare kmn", {"kmnist"}),
    ],
)
def test_the_shell_completes_choices(typed: str, offered: set[str]) -> None:
    words = f"pyro-vae {typed}"
    asked = {
        "_PYRO_VAE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = CliRunner(env=asked).invoke(app, [], prog_name="pyro-vae")
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["fit", "digits", "--scale", "abs", "--scale", "logvar"],
            "--scale is given 2 times (abs, logvar), and fit takes one; choose one by --scale",
        ),
        (
            ["fit", "digits", "-g", "flow", "-g", "normal"],
            "--guide is given 2 times (flow, normal), and fit takes one",
        ),
        (["compare", "my_model:make_pair"], "my_model:make_pair is a program, and its data are not named"),
        (["compare", "digits", "--data", "x.npy"], "digits and --data x.npy are two data sets"),
        (["compare", "digits", "--guide", "normals"], "guides names 'normals'; give some of normal"),
        (["compare", "digits", "--objective", "elb"], "objective is 'elb'; give one of elbo, iwae"),
        (["compare", "digits", "--particles", "0"], "particles is 0; give an integer of at least 1"),
        (["compare", "digits", "-g", "flow", "--latent-dim", "1"], "latent_dim of at least 2"),
        (
            ["compare", "os:getcwd", "--data", "digits", "--hidden", "4"],
            "os:getcwd makes model and guide by itself; leave hidden out",
        ),
        (["compare", "nowhere:f", "--data", "digits"], "program is in the module nowhere, and there is none"),
        (["compare", "nowhere.py:f", "--data", "digits"], "nowhere.py, and there is no such file"),
        (["compare", "shlex:joined", "--data", "digits"], "shlex has no function joined; it has split, join"),
        (["compare", "os:getcwd", "--data", "digits"], "os:getcwd cannot be called with (scale, x)"),
        (["compare", "operator:eq", "--data", "digits"], "operator:eq returns False; let it return a model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_together_is_refused_in_a_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_long_command_is_folded_and_still_the_same_command(tmp_path: Path) -> None:
    words = ["printf", "%s-", *(f"--option-{i} {'v' * i}" for i in range(1, 14))]
    folded = _folded(" ".join(words), 60)
    assert max(map(len, folded.splitlines())) <= 60
    told = subprocess.run(["sh", "-c", folded], capture_output=True, text=True, check=True).stdout
    assert told == " ".join(words[2:]).replace(" ", "-") + "-"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
def test_on_a_terminal_of_80_columns_lines_end_between_words(tmp_path: Path) -> None:
    """The table of scale maps, the help, and a sentence of refusal, as a terminal gets them."""
    said = on_terminal("scales", "compare --help", "fit digitz", cwd=tmp_path)
    assert [len(text.splitlines()) > 1 for text in said] == [True] * 3
    assert [line for text in said for line in text.splitlines() if len(line) > 80] == []
    refused = said[2].split()
    assert refused[:2] == ["pyro-vae:", "'digitz'"]
    assert "'digits'?" in refused  # the last word, whole


SEVERAL = """
import sys
from pyro_vae.cli import main
for words in sys.argv[1:]:
    sys.argv = ["pyro-vae", *words.split()]
    try:
        main()
    except SystemExit:
        print(end="\\f", flush=True)
"""


def on_terminal(*commands: str, cwd: Path) -> list[str]:
    """What each command writes on a terminal of 80 columns, without its colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", SEVERAL, *commands],
        cwd=cwd,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            said += part
        process.wait(timeout=60)
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).replace("\r\n", "\n")
    return plain.split("\f")[: len(commands)]
