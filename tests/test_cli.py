"""The command as a user meets it: in a process of its own where streams matter."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyro_vae.cli import app
from pyro_vae.study import StudyConfig, completion, measures
from pyro_vae.study.config import NAMED_ONCE
from tests import processes
from tests.conftest import briefly

SMALL = ["--epochs", "1", "--seeds", "1", "--latent-dim", "2", "--hidden", "4"]
SMALL += ["--draws", "100", "--gap-observations", "2"]
QUICK = [*SMALL, "--scale", "logvar", "--scale", "softplus"]


@pytest.fixture
def _counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is called in a folder with data."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    np.save("counts.npy", np.random.default_rng(0).poisson(3.0, (40, 4)))


def hurry() -> None:
    """As ``briefly``, in a process of its own."""
    measures.SIMULATIONS = 40
    completion.draw_figures = lambda _folder, _findings: []


@pytest.mark.arviz
@pytest.mark.usefixtures("_counts")
def test_compare_prints_one_table_and_one_answer_and_then_json(tmp_path: Path) -> None:
    words = ["compare", str(tmp_path / "counts.npy"), *QUICK, "--out", str(tmp_path / "here")]
    code, output, errors = processes.command(*words, first=hurry).end(300)
    assert code == 0, errors
    lines = output.splitlines()
    assert sum("softplus" in line and "%" in line for line in lines) >= 1
    assert "nats per observation" in output
    assert "this is about these fits and not about the guides" in output
    assert "Open the page: " in output
    assert lines[-1].endswith("here/report.html")
    assert "epochs: 2 of 2" in errors  # plain lines where there is no terminal
    assert "Can the posteriors be believed?" in output
    assert all(
        any(line.startswith("softplus") and q in line for line in lines) for q in ("encoder", "refined")
    )
    assert "\x1b[" not in output + errors  # colour is for terminals
    assert (tmp_path / "here" / "report.html").exists()
    done = CliRunner().invoke(app, [*words, "--json"])  # JSON is all that goes to standard output
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["summary"]) == {"logvar", "softplus"}
    assert set(result["comparison"]["logvar"]) >= {"elpd", "se", "weight", "diff_low", "decided"}
    assert {reading["measure"] for reading in result["readings"]} == {
        "evidence",
        "coverage",
        "bounds",
        "units",
        "gaps",
    }
    assert result["folder"] == str(tmp_path / "here")


@pytest.mark.arviz
@pytest.mark.usefixtures("_counts")
def test_fit_then_diagnose_and_report(tmp_path: Path) -> None:
    with briefly():
        done = CliRunner().invoke(app, ["fit", "counts.npy", *SMALL, "--scale", "abs", "--out", "one"])
        assert done.exit_code == 0, done.stderr
        assert "abs reaches a log evidence of" in done.stdout
        done = CliRunner().invoke(app, ["diagnose", "one", "--json"])
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["config"]["scales"] == ["abs"]
        (tmp_path / "one" / "report.html").unlink()
        done = CliRunner().invoke(app, ["report", "one"])
    assert done.stdout.split()[:5] == ["The", "report", "is", "in", str(Path("one") / "report.html")]
    assert (tmp_path / "one" / "report.html").exists()


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StudyConfig, object]]:
    """What the commands would run, in place of running it."""
    asked: list[tuple[StudyConfig, object]] = []
    monkeypatch.setattr(
        "pyro_vae.study.run_study", lambda config, out, distributed=False: asked.append((config, out))
    )
    monkeypatch.setattr("pyro_vae.cli.output.show_study", lambda study, as_json: None)
    return asked


@pytest.mark.parametrize(
    "config",
    [
        StudyConfig(),
        StudyConfig(
            "some data.npy",
            ("abs", "logvar"),
            seeds=2,
            epochs=7,
            batch_size=9,
            lr=0.5,
            latent_dim=3,
            hidden=(4, 5),
            init_scale=0.25,
            held_out=0.5,
            draws=123,
            gap_observations=0,
            device="cpu",
            root="a folder",
            likelihood="poisson",
            label="species",
            columns=("a", "b"),
            header=False,
            separator=";",
            guides=("normal", "flow"),
            objective="iwae",
            particles=7,
        ),
        StudyConfig("x.npy", ("abs",), program="shlex:split"),
    ],
)
def test_the_command_of_a_study_asks_for_that_study(
    config: StudyConfig, studies: list[tuple[StudyConfig, object]]
) -> None:
    words = shlex.split(config.command(out="there"))
    assert words[0] == "pyro-vae"
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert [(asked, str(out)) for asked, out in studies] == [(config, "there")]


def test_options_win_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, studies: list[tuple[StudyConfig, object]]
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'data = "digits"\nscales = ["abs", "logvar"]\nepochs = 5\nseeds = 4\nout = "file"\njson = true\n'
    )
    for words in (["compare"], ["compare", "mnist", "--epochs", "6", "--out", "typed"], ["fit", "-s", "abs"]):
        assert CliRunner().invoke(app, [*words, "--config", str(path)]).exit_code == 0
    expected = StudyConfig(scales=("abs", "logvar"), epochs=5, seeds=4)
    assert [(config, str(out)) for config, out in studies] == [
        (expected, "file"),
        (dataclasses.replace(expected, data="mnist", epochs=6), "typed"),
        (dataclasses.replace(expected, scales=("abs",)), "file"),
    ]


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_help_tells_the_defaults_that_hold(command: str) -> None:
    shown = " ".join(CliRunner(env={"COLUMNS": "300"}).invoke(app, [command, "--help"]).stdout.split())
    shown = shown.split(" Options ", 1)[1]
    defaults = dataclasses.asdict(StudyConfig())
    if command == "fit":
        defaults |= {"seeds": 1, "scales": ("softplus",)}
    for name, value in defaults.items():
        if value is not None and name != "data":
            told = " ".join(map(str, value)) if isinstance(value, tuple) else value
            option = f"--{NAMED_ONCE.get(name, name).replace('_', '-')} "
            assert f"[default: {told}]" in shown.split(option, 1)[1].split(" --", 1)[0]


def test_scales_prints_the_table() -> None:
    done = CliRunner().invoke(app, ["scales"])
    assert done.exit_code == 0, done.stderr
    for name in (
        "logvar",
        "logstd",
        "softplus",
        "softplus-var",
        "explinear",
        "stdplus",
        "bounded",
        "softclip",
        "clamp",
        "abs",
    ):
        assert name in done.stdout


def write_bad_data(folder: Path) -> None:
    rows = np.ones((5, 3))
    rows[3, 1] = np.nan
    np.save(folder / "nan.npy", rows)
    rows[3, 1] = -2
    np.save(folder / "negative.npy", rows)
    (folder / "wrong.toml").write_text('data = "digits"\nscalse = ["abs"]\n')
    (folder / "typed.toml").write_text('data = "digits"\nepochs = "many"\n')
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.tex").write_text("")


BAD: list[tuple[list[str], list[str]]] = [
    (["digit"], ["digit", "digits", "mnist"]),
    (["digits", "--scale", "softplu"], ["softplu", "softplus"]),
    (["digits", "--seeds", "0"], ["seeds is 0"]),
    (["digits", "--seeds", "many"], ["--seeds", "valid integer"]),
    (["digits", "--epochs", "0"], ["epochs is 0"]),
    (["digits", "--latent-dim", "-1"], ["latent_dim is -1"]),
    (["digits", "--out", "taken"], ["taken", "holds something else (thesis.tex)"]),
    (["nan.npy"], ["nan.npy", "row 3", "column 1"]),
    (["negative.npy", "--likelihood", "poisson"], ["negative.npy", "row 3", "column 1", "-2"]),
    (["missing.npy"], ["missing.npy"]),
    (["digits", "--likelihood", "gauss"], ["gauss"]),
    ([], ["there is no data set; name one, such as digits, or give --config"]),
    (["--config", "none.toml"], ["there is no file none.toml"]),
    (["--config", "wrong.toml"], ["'scalse' is no setting of a study; did you mean 'scales'?"]),
    (["--config", "typed.toml"], ["epochs is 'many'; give an integer"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value))
def test_bad_input_ends_with_code_2_and_one_sentence(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bad_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("words", [["diagnose", "here"], ["resume", "here"], ["report", "here"]])
def test_a_folder_without_a_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("pyro-vae: here holds no run: there is no run.json in it")


@pytest.mark.parametrize("command", ["compare", "fit", "diagnose", "resume", "report", "scales"])
def test_help_shows_an_example_on_a_line_of_its_own(command: str) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, [command, "--help"]).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert any(line.startswith(f"pyro-vae {command}") for line in lines)
    assert "\\b" not in shown
