"""Read and write netCDF by way of memory: a disk that is full, or a file that is damaged or made to do harm,
never meets the HDF5 library of this process."""

import io
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.inspection import require_harmless, trust
from pyro_vae.storage.records import checksum, read_bytes

if TYPE_CHECKING:
    import xarray as xr


def netcdf_bytes(content: "xr.Dataset | xr.DataTree") -> bytes:
    """The bytes of the netCDF file."""
    with _without_cluster():
        written: Any = content.to_netcdf(engine="h5netcdf")
    made = bytes(written)
    trust(made)
    return made


def _without_cluster() -> AbstractContextManager[Any]:
    """Where a Dask client is active xarray asks its cluster for a lock by the name of the file, and bytes in
    memory have none."""
    dask = sys.modules.get("dask")
    return nullcontext() if dask is None else dask.config.set(scheduler="synchronous")


def write_netcdf(content: "xr.Dataset | xr.DataTree", path: Path) -> str:
    """Write a data set or a tree whole or not at all; returns the file's checksum."""
    written = netcdf_bytes(content)
    write_whole(path, written)
    return checksum(written)


def read_dataset(path: Path, sha256: str) -> "xr.Dataset":
    """Read a data set, if the file bears this checksum. Raises FileNotFoundError or ValueError if there is no
    such file, or it is not the one that was written: then HDF5 never sees it."""
    return dataset_from(read_bytes(path, sha256), path)


def dataset_from(content: bytes, path: Path) -> "xr.Dataset":
    """The data set in the bytes of a file; ``path`` is where they lie."""
    import xarray as xr

    require_harmless(content, path)
    try:
        return xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
    except Exception as error:  # whatever the layers above HDF5 raise where a file is not of their kind
        raise _unreadable(path, error) from error


def read_tree(path: Path, sha256: str) -> "xr.DataTree":
    """Read a tree, as :func:`read_dataset` does a data set."""
    import xarray as xr

    content = read_bytes(path, sha256)
    require_harmless(content, path)
    try:
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as tree:
            # one by one: DataTree.load() passes over variables that have the name of a group, such as "loss"
            for node in tree.subtree:
                for variable in node.variables.values():
                    variable.load()
            return tree
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    return ValueError(f"{path} cannot be read ({reason}); it is damaged or foreign")
