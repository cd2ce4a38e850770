"""A study of the user's own model and guide: where they come from, and whether a study can work with them."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pyro_vae.arguments import brief
from pyro_vae.pairs.isolation import Program
from pyro_vae.pairs.seeded import seeded_pair
from pyro_vae.posterior.evaluation.sites import SharedLatentError
from pyro_vae.posterior.given import given_shared
from pyro_vae.posterior.repair.ladder import ready

ROWS_TRIED = 8

MakePair = Callable[[str, torch.Tensor], tuple[Program, Program]]


def load_program(name: str) -> MakePair:
    """The function that ``"module:function"`` or ``"folder/file.py:function"`` names; its module is imported,
    and so runs. Modules are looked for in the current folder, too. Raises ValueError if there is no such
    module or function; the sentence says what there is.

    Examples
    --------
    >>> load_program("operator:eq")("softplus", "softplus")
    True
    >>> load_program("operator")
    Traceback (most recent call last):
        ...
    ValueError: program is 'operator'; give module:function or file.py:function, such as my_model:make_pair
    """
    source, colon, function = name.rpartition(":")
    if not colon or not source or not function.isidentifier():
        raise ValueError(
            f"program is {brief(name)}; give module:function or file.py:function, such as my_model:make_pair"
        )
    module = _file(Path(source)) if source.endswith(".py") else _module(source)
    made = getattr(module, function, None)
    if not callable(made):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise ValueError(
            f"program is {brief(name)}, and {source} has no function {function}; "
            f"it has {', '.join(own) or 'none'}"
        )
    program: MakePair = made
    return program


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"program is in {path}, and there is no such file; give module:function or its path")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # dataclasses and pickles of the module look for it there
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does it
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # what is missing is something that the module wants
        raise ValueError(
            f"program is in the module {name}, and there is none; give a module that Python finds from "
            f"{Path.cwd()}, or a path such as {name.replace('.', '/')}.py:make_pair"
        ) from error


def made_pair(name: str, scale: str, rows: Any, seed: int) -> tuple[Program, Program]:
    """What the program makes of a scale map and the rows to train on; for one seed from the same random
    stream under every map. Raises ValueError if that is no model and guide."""
    make = load_program(name)
    x = torch.as_tensor(rows)
    try:
        inspect.signature(make).bind(scale, x)
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called with (scale, x): {error}; let it take the name of a scale map and the "
            "rows to train on, and return a model and a guide"
        ) from error

    def pair() -> tuple[Program, Program]:
        made = make(scale, x)
        if not isinstance(made, tuple) or len(made) != 2 or not all(map(callable, made)):
            raise ValueError(f"{name} returns {made!r:.60}; let it return a model and a guide")
        return made

    return seeded_pair(pair, seed)


def check_program(name: str, scale: str, rows: Any) -> tuple[str, ...]:
    """See that a study can work with the pair, before anything is fitted; returns the latents that all
    observations share. Raises ValueError if model and guide do not run on the rows, or not as diagnostics
    need it."""
    model, guide = made_pair(name, scale, rows, 0)
    few = rows[:ROWS_TRIED]
    try:
        ready(model, guide, few)
    except SharedLatentError:
        given = given_shared(model, guide, few, draws=1, seed=0)[0]
        ready(given.model, given.guide, few)
        return tuple(given.shared)
    return ()


def source_checksum(name: str) -> str:
    """Of the file that the program is in; empty where it has none."""
    try:
        path = inspect.getsourcefile(load_program(name))
    except TypeError:
        return ""
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
