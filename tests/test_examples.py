"""Every example runs, small, as its own program would."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_data_named import idx_bytes

pytestmark = pytest.mark.arviz
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example with arguments and returns what it printed."""

    def run(name, *arguments):
        torch.set_default_dtype(torch.float32)  # what a user has
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in source] == []


def test_count_data(run, tmp_path):
    output = run("count_data.py", "--rows", 300, "--epochs", 3, "--draws", 100)
    assert "inverse dispersion r per column" in output
    assert "negative-binomial" in output
    table = tmp_path / "mine.csv"
    table.write_text("a,b\n" + "\n".join(f"{i % 3},{i % 5}" for i in range(100)))
    assert "poisson" in run("count_data.py", "--csv", table, "--epochs", 1, "--draws", 100)


def test_convolutional_mnist(run, tmp_path):
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 11, 9), dtype=np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(n, np.uint8)))
    arguments = ["--root", tmp_path, "--out", tmp_path, "--epochs", 1, "--latent-dim", 3, "--draws", 100]
    output = run("convolutional_mnist.py", *arguments)
    assert "nats per test image" in output
    assert (tmp_path / "images.png").stat().st_size > 1000


def test_two_local_latents(run):
    output = run("two_local_latents.py", "--sensors", 200, "--epochs", 3, "--draws", 100)
    assert "AmortizedMultivariateNormal: median k̂" in output
    assert "tau: correlation of posterior median and truth" in output
