"""The house of the README: which room may know which, and what an import costs."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pyro_vae

PACKAGE = Path(pyro_vae.__file__).parent
ROOT = PACKAGE.parent

GROUND = {
    "arguments",
    "arrays",
    "copies",
    "devices",
    "figures",
    "naming",
    "older_arviz",
    "progress",
    "version",
}
MAY_KNOW: dict[str, set[str]] = {
    "arguments": set(),
    "arrays": {"arguments"},
    "copies": set(),
    "devices": {"arguments"},
    "older_arviz": set(),
    "figures": set(),
    "naming": set(),
    "progress": set(),
    "version": set(),
    "graphs": set(),
    "guides": {*GROUND, "graphs"},
    "models": GROUND,
    "storage": set(),
    "batches": GROUND,
    "pairs": {*GROUND, "graphs", "batches", "guides"},
    "data": {*GROUND, "models"},
    "svi": {*GROUND, *["storage", "graphs", "guides", "models", "batches", "pairs"]},
    "posterior": {*GROUND, *["graphs", "guides", "models", "batches", "pairs"]},
    "plots": {*GROUND, "posterior"},
    "report": {*GROUND, "storage", "guides", "models", "pairs", "svi", "posterior", "plots"},
    "run_folder": {"storage", "version"},
    "study": {
        *GROUND,
        "storage",
        "guides",
        "models",
        "data",
        "batches",
        "pairs",
        "svi",
        "posterior",
        "plots",
        "report",
        "run_folder",
    },
    "cli": {
        *GROUND,
        "storage",
        "guides",
        "models",
        "data",
        "svi",
        "posterior",
        "report",
        "run_folder",
        "study",
    },
    "__main__": {"cli"},
}
HEAVY = {
    "arviz",
    "arviz_base",
    "arviz_stats",
    "arviz_plots",
    "matplotlib",
    "sklearn",
    "pandas",
    "xarray",
    "scipy",
    "rich",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


SVI_MAY_KNOW: dict[str, set[str]] = {
    "history": set(),
    "nonfinite": set(),
    "objectives": set(),
    "parallel": {"objectives"},
    "engines": {"objectives", "parallel", "nonfinite"},
    "pyro_svi": {"objectives", "engines"},
    "loop": {"engines", "history", "nonfinite"},
    "state": {"parallel", "history", "loop"},
}
"""Of the rooms in ``svi``; the files beside them, which a user's ``fit`` is made of, may know all."""

MOST_FILES = 15

SOURCES = [p for p in sorted(PACKAGE.rglob("*.py")) if room_of(p) not in ("__init__", "conftest")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    known = {name.split(".")[1] for name in imported_modules(path) if name.startswith("pyro_vae.")}
    allowed = {*MAY_KNOW[room], room}
    assert known <= allowed, f"{room} may not know {sorted(known - allowed)}"


@pytest.mark.parametrize("room", SVI_MAY_KNOW)
def test_rooms_of_fitting_know_those_below(room: str) -> None:
    folder = PACKAGE / "svi" / room
    for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        names = {name for name in imported_modules(path) if name.startswith("pyro_vae.svi.")}
        known = {name.split(".")[2] for name in names} - {room}
        assert known <= SVI_MAY_KNOW[room], f"{path} may not know {sorted(known - SVI_MAY_KNOW[room])}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    graph = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported_modules(path)}
        & {*modules}
        for module, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_room_shows_more_than_can_be_seen_at_once() -> None:
    for folder in {path.parent for path in SOURCES}:
        shown = [path.name for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(shown) <= MOST_FILES, f"{folder} shows {len(shown)} files"


@pytest.mark.parametrize("room", ["guides", "models"])
def test_guides_and_models_need_torch_and_pyro_only(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        foreign = {name.split(".")[0] for name in imported_modules(path)}
        foreign -= {*sys.stdlib_module_names, "torch", "pyro", "pyro_vae"}
        assert not foreign, f"{path.name} imports {foreign}"


def test_heavy_packages_load_when_first_used() -> None:
    ours = "pyro_vae, pyro_vae.guides, pyro_vae.models, pyro_vae.svi, pyro_vae.cli"
    code = f"import sys, torch, pyro; old = {{*sys.modules}}; import {ours}; print(*{{*sys.modules}} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_every_public_name_is_there() -> None:
    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name) is not None
    assert set(pyro_vae.__all__) <= set(dir(pyro_vae))
    with pytest.raises(AttributeError, match="has no attribute 'Guide'"):
        pyro_vae.Guide  # noqa: B018 - the access is the test


def test_no_function_shares_its_name_with_its_module() -> None:
    for path in SOURCES:
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert path.stem not in names, f"{path} defines a function of its own name"


@pytest.mark.parametrize("link", ["models", "guides"])
def test_links_at_the_root(link: str) -> None:
    if not (ROOT / "setup.cfg").exists():
        pytest.skip("installed without the repository")
    if not (ROOT / link).is_symlink():
        pytest.skip("unpacked from an archive, which has no links")
    assert (ROOT / link).resolve() == (PACKAGE / link).resolve()
