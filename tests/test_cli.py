"""The command as a user meets it: in a process of its own where exit codes and streams matter."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

QUICK = ["--epochs", "1", "--seeds", "1", "--latent-dim", "2", "--scale", "logvar", "--scale", "softplus"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyro_vae", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.arviz
def test_compare_prints_one_table_and_one_answer(tmp_path: Path) -> None:
    done = run("compare", "digits", *QUICK, "--out", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("softplus" in line and "%" in line for line in lines) >= 1
    assert "nats per observation" in done.stdout
    assert "this is about these fits and not about the guides" in done.stdout
    assert lines[-1] == "Everything is in here"
    assert "epochs: 2 of 2" in done.stderr  # plain lines where there is no terminal
    assert (tmp_path / "here" / "report.html").exists()


@pytest.mark.arviz
def test_json_is_all_that_goes_to_standard_output(tmp_path: Path) -> None:
    done = run("compare", "digits", *QUICK, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["summary"]) == {"logvar", "softplus"}
    assert set(result["comparison"]["logvar"]) >= {"elpd", "se", "weight", "diff_low", "decided"}
    assert result["folder"] == str(Path("runs") / "digits")


def test_scales_prints_the_table(tmp_path: Path) -> None:
    done = run("scales", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
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
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value))
def test_bad_input_ends_with_code_2_and_one_sentence(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    write_bad_data(tmp_path)
    done = run("compare", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(tmp_path: Path) -> None:
    done = run("compare", "digits", "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2
    assert "sees no CUDA device here" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_help_shows_examples(tmp_path: Path) -> None:
    done = run("compare", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "pyro-vae compare digits" in done.stdout
