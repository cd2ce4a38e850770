"""What version 0.1.0 wrote still opens: a saved fit, the checkpoint of another, and the folder of a study.

The files are in ``tests/version_0_1_0``; the pair and the data below are those that they were made with.
"""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_vae
from pyro_vae.study import Study
from pyro_vae.svi import Fit, fit

OWN_SEEDS = True


OLD = Path(__file__).parent / "version_0_1_0"
X = (np.arange(60).reshape(20, 3) * 7 % 5 - 2).astype("float32")
OPTIONS = {"batch_size": 8, "seed": 3, "engine": "captured", "progress": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(OLD / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def pair() -> Any:
    torch.manual_seed(0)
    model = pyro_vae.models.VAE(torch.nn.Linear(1, 3), 1, "normal")
    return model, pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(3, 2))


def test_a_saved_fit_is_loaded_and_its_checkpoint_goes_on_to_it(tmp_path: Path) -> None:
    """The checkpoint was written after one epoch of the three of the saved fit."""
    saved = Fit.load(unpacked("fit", tmp_path), *pair())
    assert (saved.seed, saved.engine, saved.history.sizes["step"]) == (3, "captured", 9)
    model, guide = pair()
    resumed = fit(model, guide, X, epochs=3, checkpoint=tmp_path / "fit.state", **OPTIONS)
    np.testing.assert_allclose(resumed.history["loss"], saved.history["loss"], rtol=1e-4)
    for ours, theirs in zip(resumed.guide.parameters(), saved.guide.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_fit_from_the_beginning_has_its_numbers(tmp_path: Path) -> None:
    saved = Fit.load(unpacked("fit", tmp_path), *pair())
    again = fit(*pair(), X, epochs=3, **OPTIONS)
    np.testing.assert_allclose(again.history["loss"], saved.history["loss"], rtol=1e-4)


def test_the_folder_of_a_study_is_opened(tmp_path: Path) -> None:
    study = Study.load(unpacked("study", tmp_path))
    assert study.diagnostics.sizes["observation"] == 2
    assert list(study.posteriors) == ["softplus"]
    assert "softplus" in study.summary().to_string()
