"""Wrong words on the command line: exit code 2, one sentence on standard error, no traceback."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyro_vae.cli import app
from pyro_vae.storage.records import write_record
from tests.conftest import briefly

COMMANDS = ("compare", "fit")
WRONG = (
    (["digitz"], "'digitz'", "Did you mean 'digits'"),
    (["nowhere.csv"], "nowhere.csv", "no file"),
    (["mine.pkl"], "'mine.pkl'", ".npy"),
    ([""], "''", "digits"),
    ([], "no data set", "digits"),
    (["digits", "--scale", "sofplus"], "'sofplus'", "'softplus'"),
    (["digits", "--scale", "bounded", "--init-scale", "9"], "init_scale is 9.0", "another map"),
    (["digits", "--seeds", "0"], "seeds is 0", "at least 1"),
    (["digits", "--seeds", "three"], "'--seeds'", "integer"),
    (["digits", "--epochs", "-1"], "epochs is -1", "at least 1"),
    (["digits", "--epochs", "1.5"], "'--epochs'", "integer"),
    (["digits", "--batch-size", "0"], "batch_size is 0", "at least 1"),
    (["digits", "--lr", "0"], "lr is 0.0", "positive number"),
    (["digits", "--lr", "nan"], "lr is nan", "positive number"),
    (["digits", "--lr", "fast"], "'--lr'", "a valid"),
    (["digits", "--latent-dim", "0"], "latent_dim is 0", "at least 1"),
    (["digits", "--hidden", "0"], "hidden is (0,)", "hidden layers"),
    (["digits", "--init-scale", "-1"], "init_scale is -1.0", "positive number"),
    (["digits", "--held-out", "2"], "held_out is 2.0", "between 0 and 1"),
    (["digits", "--draws", "10"], "draws is 10", "at least 100"),
    (["digits", "--gap-observations", "-1"], "gap_observations is -1", "at least 0"),
    (["digits", "--device", "gpu"], "device is 'gpu'", "'cuda'"),
    (["digits", "--likelihood", "gauss"], "likelihood is 'gauss'", "normal"),
    (["digits", "--likelihood", "bernoulli", "--root", "."], "root", "neither"),
    (["mnist", "--root", "empty"], "root is 'empty'", "train-images"),
    (["digits", "--config", "nowhere.toml"], "nowhere.toml", "TOML file"),
    (["--config", "broken.toml"], "broken.toml is not TOML", "Invalid value"),
    (["--config", "unknown.toml"], "'epoch'", "'epochs'"),
    (["digits", "--out", "thesis"], "thesis.tex", "new or empty folder"),
    (["digits", "--out", "file"], "file", "name another"),
    (["digits", "--epoch", "3"], "--epoch", "--epochs"),
    (["digits", "mnist"], "mnist", "unexpected extra argument"),
    (["nan.npy"], "nan in row 1, column 0", "impute"),
    (["halves.npy", "--likelihood", "bernoulli"], "0.5 in row 0", "binarize"),
    (["halves.npy", "--likelihood", "poisson"], "0.5 in row 0", "use Normal"),
    (["one.npy"], "constant", "nothing to model"),
)
OTHERS = (
    (["compar"], "compar", "compare"),
    (["scales", "softplus"], "softplus", "unexpected extra argument"),
    (["diagnose"], "run", "Missing argument"),
    (["diagnose", "nowhere"], "nowhere holds no run", "pyro-vae compare"),
    (["diagnose", "thesis"], "thesis holds no run", "pyro-vae compare"),
    (["diagnose", "broken"], "run.json is not JSON", "damaged"),
    (["diagnose", "newer"], "schema 99", "update pyro-vae"),
    (["diagnose", "unfinished"], "'running' and not done", "pyro-vae resume"),
    (["diagnose", "nowhere", "--draws", "ten"], "'--draws'", "integer"),
    (["report", "nowhere"], "nowhere holds no run", "pyro-vae compare"),
    (["report", "broken"], "run.json is not JSON", "damaged"),
    (["report", "unfinished"], "'running' and not done", "pyro-vae resume"),
    (["fit", "--config", "several.toml"], "2 scales", "--scale"),
)
ALL = [([command, *words], place, remedy) for command in COMMANDS for words, place, remedy in WRONG]


@pytest.fixture
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the table names."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    texts = {
        "broken.toml": "epochs = ",
        "unknown.toml": 'data = "digits"\nepoch = 3',
        "several.toml": 'data = "digits"\nscales = ["abs", "clamp"]',
        "file": "",
        "thesis/thesis.tex": "",
        "broken/run.json": "{",
        "newer/run.json": '{"schema": 99}',
        "empty/nothing": "",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "unfinished").mkdir()
    unfinished = {"schema": 1, "config": {}, "device": "cpu", "result": {"status": "running"}}
    write_record(tmp_path / "unfinished" / "run.json", unfinished)
    np.save("nan.npy", np.array([[1.0, 2.0], [np.nan, 3.0]]))
    np.save("halves.npy", np.array([[0.5, 2.0], [1.0, 3.0]]))
    np.save("one.npy", np.ones((4, 2)))


@pytest.mark.usefixtures("_desk")
@pytest.mark.parametrize(
    ("words", "place", "remedy"),
    [*ALL, *OTHERS],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words(words: list[str], place: str, remedy: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    told = " ".join(done.stderr.replace("│", " ").split())  # typer puts its own refusals into a box
    assert place.lower() in told.lower(), told
    assert remedy in told, told
    assert "Traceback" not in done.output
    if told.startswith("pyro-vae: "):
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.usefixtures("_desk")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", COMMANDS)
def test_cuda_where_there_is_none(command: str) -> None:
    done = CliRunner().invoke(app, [command, "digits", "--device", "cuda"])
    assert done.exit_code == 2
    assert "device is 'cuda'" in done.stderr
    assert "use 'cpu'" in done.stderr
    assert not Path("runs").exists()


@pytest.mark.usefixtures("_desk")
def test_a_guide_that_cannot_be_fitted_is_left_out_and_named() -> None:
    """At lr 10 an exponential map overflows; the other guide is fitted, diagnosed and reported."""
    small = "--epochs 4 --seeds 1 --latent-dim 2 --draws 100 --gap-observations 0 --hidden 32 --held-out 0.05"
    words = ["compare", "digits", "-s", "logvar", "-s", "softclip", "--lr", "10", *small.split()]
    with briefly():
        done = CliRunner().invoke(app, [*words, "--out", "run"])
    assert done.exit_code == 0, done.output
    failed = next(line for line in done.stdout.splitlines() if line.startswith("Failed: "))
    assert failed.startswith("Failed: logvar, seed 0: 3 steps in a row were not finite")
    for word in ("site 'z'", "latent dimension", "raw = ", "σ = inf", "smaller lr"):
        assert word in failed
    assert "softclip" in done.stdout
    assert sorted(path.name for path in (Path("run") / "fits").iterdir()) == ["softclip-0"]
    alone = CliRunner().invoke(app, [*words[:4], *words[6:], "--out", "none"])
    assert alone.exit_code == 1
    assert alone.stderr.splitlines()[-1].startswith("pyro-vae: no guide could be fitted: logvar, seed 0: ")
