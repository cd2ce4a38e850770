"""Parts of a diagnosis, kept while the rest is under way: an interruption costs one of them and not all."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.storage.netcdf import read_tree, write_netcdf
from pyro_vae.storage.records import read_record, write_record

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = 1


@dataclass(frozen=True)
class Parts:
    """A folder of named data sets that were made in a certain way."""

    folder: Path
    asked: Mapping[str, Any]
    """How, in plain values; what was made otherwise is made again."""

    def get(self, name: str, make: "Callable[[], Mapping[str, xr.Dataset]]") -> "dict[str, xr.Dataset]":
        """The data sets of this name: as they were kept, or made, kept and read back: no difference
        is left between the two."""
        import xarray as xr

        path, note = self.folder / f"{name}.nc", self.folder / f"{name}.json"
        try:
            kept = read_record(note, SCHEMA)
            if kept["asked"] != dict(self.asked):
                raise ValueError("it was made otherwise")
            tree = read_tree(path, str(kept["content"]))
        except (FileNotFoundError, ValueError, KeyError):
            self.folder.mkdir(exist_ok=True)
            content = write_netcdf(xr.DataTree.from_dict(dict(make())), path)
            write_record(note, {"schema": SCHEMA, "asked": dict(self.asked), "content": content})
            tree = read_tree(path, content)
        return {str(key): child.to_dataset() for key, child in tree.children.items()}

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)
