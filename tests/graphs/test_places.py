"""Whose code a file is: the user's, or that of a library, wherever it was installed."""

import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from pyro_vae.graphs import places


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder filled by ``pip install --target``: without the word ``site-packages`` in it."""
    (tmp_path / "pyro_ppl-1.9.2.dist-info").mkdir()
    known = {"pyro": ModuleSpec("pyro", None, origin=str(tmp_path / "pyro" / "__init__.py"))}
    monkeypatch.setattr(importlib.util, "find_spec", known.get)
    caches = (places._library_folders, places._places_of_installation)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_libraries_outside_of_site_packages_are_no_program_of_a_user(elsewhere: Path) -> None:
    """Pyro's own code was followed there as if the user had written it, and found to draw random numbers."""
    assert places.is_library(str(elsewhere / "pyro" / "infer" / "svi.py"))
    neighbour, program = str(elsewhere / "scvi" / "model.py"), str(elsewhere.parent / "model.py")
    assert places.is_installed(neighbour)
    assert not places.is_library(neighbour)
    assert not places.is_library(program)
    assert not places.is_installed(program)


def test_a_clone_of_a_library_makes_no_installation_of_its_folder(elsewhere: Path) -> None:
    (elsewhere / "pyro_ppl-1.9.2.dist-info").rmdir()
    assert places.is_library(str(elsewhere / "pyro" / "infer" / "svi.py"))
    assert not places.is_installed(str(elsewhere / "examples" / "vae.py"))


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_the_usual_folders(folder: str) -> None:
    assert places.is_installed(f"/usr/lib/python3/{folder}/scvi/model.py")
    assert places.is_library(torch.nn.modules.linear.__file__)
