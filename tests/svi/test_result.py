"""Saving and loading fits."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae.pairs.isolation import isolated
from pyro_vae.svi import ELBO, Fit, fit
from tests.svi.pairs import PAIRS, Pair, observations


def fitted_pair(name: str) -> tuple[Pair, Fit]:
    pair = PAIRS[name]()
    return pair, fit(
        pair.model, pair.guide, observations(32), epochs=2, batch_size=16, lr=0.05, progress=False
    )


def loss_of(fitted: Fit) -> float:
    x = observations(32)
    with isolated(fitted.model, fitted.guide, seed=3), torch.no_grad():
        return float(ELBO().estimate(fitted.model, fitted.guide, (x,)).loss)


@pytest.mark.parametrize("name", [n for n in PAIRS if n not in ("dropout",)])
def test_a_round_trip_into_fresh_objects_is_exact(name: str, tmp_path: Path) -> None:
    _, fitted = fitted_pair(name)
    folder = fitted.save(tmp_path / "a fit")
    torch.manual_seed(99)
    fresh = PAIRS[name]()
    if name.startswith("Auto"):  # Pyro's autoguides make their parameters on the first call
        fresh.guide(observations(2))
    loaded = Fit.load(folder, fresh.model, fresh.guide)
    assert loss_of(loaded) == loss_of(fitted)
    np.testing.assert_array_equal(loaded.history["loss"], fitted.history["loss"])
    assert (loaded.seed, loaded.engine, loaded.device) == (fitted.seed, fitted.engine, fitted.device)


def test_a_loaded_fit_of_functions_can_be_saved_again(tmp_path: Path) -> None:
    _, fitted = fitted_pair("functions")
    fitted.save(tmp_path / "one")
    fresh = PAIRS["functions"]()
    once = Fit.load(tmp_path / "one", fresh.model, fresh.guide)
    once.save(tmp_path / "two")
    twice = Fit.load(tmp_path / "two", *PAIRS["functions"]()[:2])
    assert loss_of(twice) == loss_of(fitted)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    _, fitted = fitted_pair("normal")
    fitted.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.json", "history.nc", "params.safetensors"]
    assert json.loads((tmp_path / "fit.json").read_text())["schema"] == 1


def test_the_wrong_pair_is_refused_by_name(tmp_path: Path) -> None:
    _, fitted = fitted_pair("normal")
    fitted.save(tmp_path)
    flow = PAIRS["flow"]()
    with pytest.raises(ValueError, match="this guide has a parameter 'flow"):
        Fit.load(tmp_path, flow.model, flow.guide)
    smaller = PAIRS["normal"]()
    smaller.guide.loc = torch.nn.Linear(5, 3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"does not suit this guide: .*loc"):
        Fit.load(tmp_path, smaller.model, smaller.guide)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("fit.json", b"{", "is not JSON"),
        ("fit.json", b'{"schema": 1}', "has no checksum"),
        ("params.safetensors", b"nonsense", "cannot be read"),
        ("history.nc", b"nonsense", "cannot be read"),
    ],
)
def test_damaged_files_get_a_sentence(file: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    pair, fitted = fitted_pair("normal")
    fitted.save(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file}.*{sentence}"):
        Fit.load(tmp_path, pair.model, pair.guide)


def test_a_missing_and_a_newer_fit_are_refused(tmp_path: Path) -> None:
    pair, fitted = fitted_pair("normal")
    with pytest.raises(FileNotFoundError, match=r"holds no fit: there is no fit.json"):
        Fit.load(tmp_path / "nowhere", pair.model, pair.guide)
    fitted.save(tmp_path)
    record: dict[str, Any] = json.loads((tmp_path / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps({**record, "schema": 2}))
    with pytest.raises(ValueError, match="has schema 2, and this version of pyro-vae reads schema 1: update"):
        Fit.load(tmp_path, pair.model, pair.guide)


def test_only_who_looks_at_the_history_waits_for_xarray() -> None:
    code = """
        import sys, torch, pyro_vae
        model = pyro_vae.models.VAE(torch.nn.Linear(2, 5), 2, "normal")
        guide = pyro_vae.guides.AmortizedNormal(model, torch.nn.Linear(5, 8))
        fitted = pyro_vae.fit(model, guide, torch.randn(8, 5), steps=3, engine="eager", progress=False)
        early = "xarray" in sys.modules
        print(early, fitted.history.sizes["step"], fitted.history is fitted.history)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "3", "True"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    _, fitted = fitted_pair("normal")
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path / "taken" / "inside"):
        with pytest.raises(FileExistsError, match=r"path is .*, and .*taken is a file; give .* a folder"):
            fitted.save(place)
    assert (tmp_path / "taken").read_text() == "mine"
