"""Every example runs, small, as its own program would."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.guides.scales import registry
from tests.test_data_named import idx_bytes

pytestmark = pytest.mark.arviz
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example with arguments, sees the picture that it leaves, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        torch.set_default_dtype(torch.float32)  # what a user has
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        if name != "convolutional_mnist.py":
            assert Path(name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
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
    arguments = ["--out", tmp_path, "--epochs", 1, "--latent-dim", 3, "--draws", 100, "--held-out", 20]
    for data in (["--set", "mnist", "--root", tmp_path], ["--rows", 50]):
        assert "nats per test image" in run("convolutional_mnist.py", *arguments, *data)
        assert (tmp_path / "images.png").stat().st_size > 1000
        (tmp_path / "images.png").unlink()


def test_lightning_module(run):
    pytest.importorskip("lightning", reason="lightning is not installed")
    assert "nats per image" in run("lightning_module.py", "--epochs", 2)


def test_own_model(run):
    output = run("own_model.py", "--students", 60, "--questions", 6, "--steps", 30)
    assert "correlation of posterior mean and truth" in output
    assert "is the best with probability" in output


def test_pyro_tutorial(run):
    output = run("pyro_tutorial.py", "--epochs", 1, "--scales", "logvar", "explinear")
    assert [line.split()[0] for line in output.splitlines()] == [
        "tutorial",
        "logvar",
        "explinear",
        "picture:",
    ]


def test_hierarchical_regression(run):
    small = ["--schools", 5, "--pupils", 3, "--steps", 30]
    output = run("hierarchical_regression.py", *small, "--scales", "logvar", "stdplus")
    assert [line.split()[0] for line in output.splitlines()[2:]] == ["logvar", "stdplus", "picture:"]


def test_diagnose_elsewhere(run):
    output = run("diagnose_elsewhere.py", "--epochs", 2, "--steps", 200, "--observations", 40)
    assert "of 6 latents active" in output
    assert "Pyro: k̂ above" in output


def test_kl_warmup(run):
    output = run("kl_warmup.py", "--epochs", 3, "--latent-dim", 3, "--draws", 100)
    assert "no warm-up" in output
    assert output.count("of  3") == 3


def test_custom_scale_map(run, monkeypatch):
    monkeypatch.setattr(registry, "_MAPS", dict(registry._MAPS))
    output = run("custom_scale_map.py", "--steps", 50)
    assert output.count("constraint True") == 2
    assert "arctan     gap" in output


@pytest.mark.slow
def test_compare_nuts(run):
    small = ["--epochs", 8, "--images", 1, "--latent-dim", 1]
    output = run("compare_nuts.py", *small, "--draws", 400, "--warmup", 200)
    assert "largest R-hat" in output
    assert "repair: " in output


def test_two_local_latents(run):
    output = run("two_local_latents.py", "--sensors", 200, "--epochs", 3, "--draws", 100)
    assert "AmortizedMultivariateNormal: median k̂" in output
    assert "tau: correlation of posterior median and truth" in output


def test_sklearn_transformer(run):
    output = run("sklearn_transformer.py", "--epochs", 2, "--latents", 2, 3)
    assert [line.split()[0] for line in output.splitlines()] == ["2", "3", "picture:"]


def test_the_transformer_is_cloned_and_checked_as_scikit_learn_does():
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    torch.set_default_dtype(torch.float32)
    example = runpy.run_path(str(EXAMPLES / "sklearn_transformer.py"))
    transformer = example["VAETransformer"](latent_dim=2, hidden=8, epochs=1)
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(NotFittedError):
        transformer.transform(x)
    means = transformer.fit(x).transform(x)
    assert means.shape == (40, 2)
    twin = clone(transformer)
    assert twin.get_params() == transformer.get_params()
    assert not hasattr(twin, "fit_")
    np.testing.assert_array_equal(twin.fit(x).transform(x), means)
    with pytest.raises(ValueError, match="4 features"):
        transformer.transform(np.zeros((2, 4)))
