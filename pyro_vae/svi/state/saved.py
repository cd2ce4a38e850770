"""A fit on disk: safetensors, JSON and netCDF; nothing is pickled.

``fit.json`` is written last and bears the checksums of the others, so that the three are of one moment:
whoever kills a process that saves a fit over an older one finds either the old fit or the new.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_vae.pairs.isolation import Program, owner
from pyro_vae.storage.atomic import sync_folder, write_whole
from pyro_vae.storage.netcdf import dataset_from, netcdf_bytes
from pyro_vae.storage.records import checksum, read_bytes, read_record, write_record
from pyro_vae.svi.state.frozen import restore_frozen

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = 1
"""Version of the files' layout; a reader refuses a newer one."""

RECORD, PARAMETERS, HISTORY = "fit.json", "params.safetensors", "history.nc"

NEW = ".new"
"""Suffix of a file from when it is written until ``fit.json`` speaks of it."""


@dataclass(frozen=True)
class FitRecord:
    """What ``fit.json`` says, beside the schema and the checksums."""

    seed: int
    device: str
    engine: str
    steps_per_second: float


@dataclass(frozen=True)
class SavedFit:
    """A fit as read from a folder."""

    tensors: Mapping[str, Tensor]
    record: FitRecord
    history: "xr.Dataset"


def write(folder: Path, tensors: Mapping[str, Tensor], record: FitRecord, history: "xr.Dataset") -> Path:
    """Write the three files of a fit; see :class:`SavedFit`. Tensors are on the CPU and share no memory."""
    from safetensors.torch import save

    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise FileExistsError(f"path is {folder}, and {there} is a file; give the path of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    contents = {PARAMETERS: save(dict(tensors)), HISTORY: netcdf_bytes(history)}
    for name, content in contents.items():
        write_whole(folder / f"{name}{NEW}", content)
    files = {name: checksum(content) for name, content in contents.items()}
    write_record(folder / RECORD, {"schema": SCHEMA, **dataclasses.asdict(record), "files": files})
    settle(folder)
    return folder


def settle(folder: Path) -> None:
    """Give the files that ``fit.json`` speaks of their names, where a process was killed before it could.
    Raises FileNotFoundError or ValueError if there is no ``fit.json``, or it is damaged."""
    _, files = _read_record(folder)
    for name in (PARAMETERS, HISTORY):
        new = folder / f"{name}{NEW}"
        if new.is_file() and checksum(new.read_bytes()) == files.get(name):
            new.replace(folder / name)
    sync_folder(folder)


def read(folder: Path) -> SavedFit:
    """Read what :func:`write` wrote. Raises FileNotFoundError if a file is missing; ValueError if a file is
    damaged or of a newer schema."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    record, files = _read_record(folder)
    content, _ = _read_file(folder, PARAMETERS, files)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / PARAMETERS} cannot be read ({error}); it is foreign") from error
    return SavedFit(tensors, record, dataset_from(*_read_file(folder, HISTORY, files)))


def read_history(folder: Path) -> "xr.Dataset":
    """The history alone; raises what :func:`read` does."""
    _, files = _read_record(folder)
    return dataset_from(*_read_file(folder, HISTORY, files))


def _read_record(folder: Path) -> tuple[FitRecord, dict[str, Any]]:
    path = folder / RECORD
    if not path.is_file():
        raise _no_fit(folder, RECORD)
    content = read_record(path, SCHEMA)
    try:
        files = dict(content.pop("files"))
        return FitRecord(**content), files
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not what Fit.save writes ({error}); it is damaged or foreign") from error


def _read_file(folder: Path, name: str, files: Mapping[str, Any]) -> tuple[bytes, Path]:
    """The file that ``fit.json`` speaks of, and where it lies: under its own name, or, if the process was
    killed just then, under the one that it had before."""
    path, new = folder / name, folder / f"{name}{NEW}"
    sha256 = str(files.get(name))
    try:
        return read_bytes(path, sha256), path
    except (FileNotFoundError, ValueError) as error:
        try:
            return read_bytes(new, sha256), new
        except (FileNotFoundError, ValueError):
            raise (_no_fit(folder, name) if isinstance(error, FileNotFoundError) else error) from None


def _no_fit(folder: Path, name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} holds no fit: there is no {name} in it; give the folder that Fit.save wrote"
    )


def load_into(tensors: Mapping[str, Tensor], model: Program, guide: Program) -> dict[str, Tensor]:
    """Load saved tensors into the modules of a pair; returns those of ``pyro.param`` statements, by their
    names there. Raises ValueError if names or shapes differ from what is saved."""
    pending = {
        name.removeprefix("store."): value for name, value in tensors.items() if name.startswith("store.")
    }
    for tag, program in (("model", model), ("guide", guide)):
        module = owner(program)
        if module is None:
            if any(name.startswith(f"{tag}.") for name in tensors):
                raise ValueError(
                    f"the saved fit has a module for the {tag}, and this {tag} is a function; give the module"
                )
            continue
        own = {
            name.removeprefix(f"{tag}."): value
            for name, value in tensors.items()
            if name.startswith(f"{tag}.")
        }
        try:
            problems = module.load_state_dict(own, strict=False)
        except RuntimeError as error:
            raise ValueError(
                f"the saved fit does not suit this {tag}: {str(error).splitlines()[-1].strip()}"
            ) from error
        if problems.unexpected_keys:
            raise ValueError(
                f"the saved fit has {tag}.{problems.unexpected_keys[0]}, and this {tag} has no such parameter"
            )
        shared = {id(t) for name, t in _state(model, guide).items() if name in tensors}
        missing = [
            name for name in problems.missing_keys if id(_state(model, guide)[f"{tag}.{name}"]) not in shared
        ]
        if missing:
            raise ValueError(f"this {tag} has a parameter {missing[0]!r} that the saved fit does not have")
    restore_frozen(tensors, model, guide)
    return pending


def _state(model: Program, guide: Program) -> dict[str, Tensor]:
    """Parameters and persistent buffers under all of their names: one of several may be the saved one."""
    state: dict[str, Tensor] = {}
    for tag, program in (("model", model), ("guide", guide)):
        module = owner(program)
        if module is not None:
            state |= {f"{tag}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    return state
