"""A fit on disk: safetensors, JSON and netCDF; nothing is pickled."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_vae.svi.isolation import owner
from pyro_vae.svi.objective import Program

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCHEMA", "FitRecord", "SavedFit", "load_into", "read", "write"]

SCHEMA = 1
"""Version of the files' layout; a reader refuses a newer one."""


@dataclass(frozen=True)
class FitRecord:
    """What ``fit.json`` says, beside the schema."""

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
    """Write the three files of a fit; see :class:`SavedFit`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / "params.safetensors",
    )
    history.to_netcdf(folder / "history.nc", engine="h5netcdf")
    text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(record)}, indent=2)
    (folder / "fit.json").write_text(text + "\n")
    return folder


def read(folder: Path) -> SavedFit:
    """Read what :func:`write` wrote.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged or of a newer schema.
    """
    import xarray as xr
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in ("fit.json", "params.safetensors", "history.nc"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no fit: there is no {name} in it; give the folder that Fit.save wrote"
            )
    try:
        content = json.loads((folder / "fit.json").read_text())
        schema = content.pop("schema")
        record = FitRecord(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'fit.json'} is not what Fit.save writes ({error}); it is damaged or foreign"
        ) from error
    if schema != SCHEMA:
        raise ValueError(
            f"{folder / 'fit.json'} has schema {schema!r}; this version of pyro-vae reads schema {SCHEMA}"
        )
    try:
        tensors = load_file(folder / "params.safetensors")
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{folder / 'params.safetensors'} cannot be read ({error}); it is damaged or foreign"
        ) from error
    try:
        with xr.open_dataset(folder / "history.nc", engine="h5netcdf") as lazy:
            history = lazy.load()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / 'history.nc'} cannot be read ({error}); it is damaged or foreign"
        ) from error
    return SavedFit(tensors, record, history)


def load_into(tensors: Mapping[str, Tensor], model: Program, guide: Program) -> dict[str, Tensor]:
    """Load saved tensors into the modules of a pair; returns those of ``pyro.param`` statements, by their
    names there.

    Raises
    ------
    ValueError
        If names or shapes differ from what is saved.
    """
    pending = {
        name.removeprefix("store."): value for name, value in tensors.items() if name.startswith("store.")
    }
    for tag, program in (("model", model), ("guide", guide)):
        module = owner(program)
        if module is None:
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
    return pending


def _state(model: Program, guide: Program) -> dict[str, Tensor]:
    """Parameters and persistent buffers under all of their names: one of several may be the saved one."""
    state: dict[str, Tensor] = {}
    for tag, program in (("model", model), ("guide", guide)):
        module = owner(program)
        if module is not None:
            state |= {f"{tag}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}
    return state
