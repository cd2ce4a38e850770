"""A run on disk: what lies where, and who may write there.

::

    runs/digits/
      run.json                       what was asked, versions, device, schema version
      fits/softplus-0/               params.safetensors, fit.json, history.nc; state while it is fitted
      posterior/softplus.nc          draws for some held-out observations
      diagnostics.nc                 (guide, seed, observation): evidence, ELBO, k̂ …
      refined.nc                     the same of the refined guides
      calibration.nc refined_calibration.nc units.nc latents.nc    (guide, seed, …)
      gaps.nc                        (guide, observation), of each first fit
      compare.csv
      figures/*.png  report.html
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_vae.storage.atomic import TEMPORARY
from pyro_vae.storage.lock import LOCK, locked
from pyro_vae.storage.records import read_record, write_record
from pyro_vae.version import __version__

SCHEMA = 1
"""Version of the layout; a reader refuses a newer one."""

LONGEST_NAME = 255
"""Bytes that file systems take."""

_ENTRIES = {"config", "data", "read", "device", "versions", "result", "files"}
_MEASURES = (
    "diagnostics",
    "refined",
    "calibration",
    "refined_calibration",
    "units",
    "latents",
    "gaps",
)
_PARTS = (
    "fits",
    "parts",
    "posterior",
    "compare.csv",
    "figures",
    "report.html",
    *(f"{measure}.nc" for measure in _MEASURES),
)


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder."""

    root: Path

    @property
    def record(self) -> Path:
        return self._within("run.json")

    @property
    def figures(self) -> Path:
        return self._within("figures")

    @property
    def parts(self) -> Path:
        """What is diagnosed already, until all of it is."""
        return self._within("parts")

    @property
    def comparison(self) -> Path:
        return self._within("compare.csv")

    @property
    def report(self) -> Path:
        return self._within("report.html")

    def fit(self, guide: str, seed: int) -> Path:
        return self._within("fits", f"{guide}-{seed}")

    def posterior(self, guide: str) -> Path:
        return self._within("posterior", f"{guide}.nc")

    def measure(self, name: str) -> Path:
        """File of one of the measures, such as "diagnostics"."""
        return self._within(f"{name}.nc")

    def _within(self, *names: str) -> Path:
        """A path in this folder. Names may come from a file, and what is there may be a link: neither leads
        out of it."""
        for name in names:
            unusable = name in ("", ".", "..") or any(character in name for character in "/\\\0")
            if unusable or len(name.encode()) > LONGEST_NAME:
                raise ValueError(f"{name!r} is no name of a file in a run; the run in {self.root} is foreign")
        path = self.root.joinpath(*names)
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        if not inside:
            raise ValueError(
                f"{path} is a link that leads out of the run's folder; put the file itself there"
            )
        return path

    def read_record(self) -> dict[str, Any]:
        """What ``run.json`` says. Raises ValueError if it is damaged, or was written by a newer version."""
        return read_run_record(self.record)

    def write_record(
        self,
        config: Mapping[str, Any],
        device: str,
        result: Mapping[str, Any],
        *,
        data: str = "",
        read: Mapping[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Write ``run.json``: the request, what ran it, the checksum of the data and what was read of them,
        and (when it is known) the result with the checksums of its files."""
        versions = {
            name: version(name) for name in ("torch", "pyro-ppl", "arviz-base", "arviz-stats", "numpy")
        }
        record = {
            "schema": SCHEMA,
            "config": dict(config),
            "data": data,
            "read": dict(read or {}),
            "device": device,
            "versions": {"pyro-vae": __version__, "python": sys.version.split()[0], **versions},
            "result": dict(result),
            "files": dict(files or {}),
        }
        write_record(self.record, record)

    def tidy(self) -> None:
        """Remove what killed processes have left behind."""
        for path in self.root.rglob(".*"):
            if _is_passing(path.name) and path != self.root / LOCK:
                with suppress(IsADirectoryError, PermissionError):
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything but the record, and make the places anew."""
        for name in _PARTS:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in ("fits", "posterior", "figures"):
            (self.root / name).mkdir()


def read_run_record(path: Path, *, strict: bool = True) -> dict[str, Any]:
    """What a ``run.json`` holds; see :func:`~pyro_vae.storage.records.read_record` for ``strict``. Raises
    ValueError if it is no record of a run, or of a newer schema."""
    content = read_record(path, SCHEMA, strict=strict)
    unknown = sorted(content.keys() - _ENTRIES)
    if unknown:
        raise ValueError(f"{path} has an entry {unknown[0]!r}, which no run has; it is damaged or foreign")
    for part in ("config", "result", "files", "versions", "read"):
        if not isinstance(content.get(part, None if part in ("config", "result") else {}), dict):
            raise ValueError(f"{path} has no {part!r}; it is damaged or foreign")
    if not isinstance(content.get("device", ""), str):
        raise ValueError(f"{path} has a device that is no text; it is damaged or foreign")
    return content


def open_run(root: str | Path) -> RunFolder:
    """The folder of a run that exists. Raises FileNotFoundError if there is no run in it."""
    folder = RunFolder(Path(root))
    if not folder.record.is_file():
        raise FileNotFoundError(
            f"{folder.root} holds no run: there is no run.json in it; give a folder that "
            "`pyro-vae compare` or `pyro-vae fit` has written"
        )
    return folder


@contextmanager
def writing(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder for writing; a second process is refused. Raises BlockingIOError if another process
    is writing into it; OSError if it cannot be written."""
    with locked(folder.root):
        yield


@contextmanager
def claim(
    root: str | Path,
    config: Mapping[str, Any],
    device: str,
    *,
    data: str = "",
    read: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Iterator[RunFolder]:
    """Take a folder for a run and hold it: a new or empty one, or one with an earlier run that may be
    replaced. Raises BlockingIOError if another process is writing into it; ValueError if the folder holds a
    run and ``overwrite`` is false, or something that is not a run, or cannot be written; nothing is removed
    then.

    Examples
    --------
    >>> import tempfile
    >>> with claim(Path(tempfile.mkdtemp()) / "digits", {}, "cpu") as folder:
    ...     folder.fit("softplus", 0).name
    'softplus-0'
    """
    folder = RunFolder(Path(root))
    with ExitStack() as held:
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
            held.enter_context(writing(folder))
            _refuse_strangers(folder)
            if folder.record.exists() and not overwrite:
                raise ValueError(
                    f"the output folder {folder.root} holds another run; name a new folder by out=... "
                    "(--out), or give overwrite=True (--overwrite) to replace what is there"
                )
            # Who is killed while clearing must not leave fits of the earlier run, to be taken for its own.
            begun = {"started": now()}
            folder.write_record(config, device, {"status": "clearing", **begun}, data=data, read=read)
            folder.clear()
            folder.write_record(config, device, {"status": "running", **begun}, data=data, read=read)
        except BlockingIOError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(
                f"the output folder {folder.root} cannot be written ({reason}); name another"
            ) from error
        yield folder


def now() -> str:
    """The time, as records have it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_strangers(folder: RunFolder) -> None:
    names = sorted(path.name for path in folder.root.iterdir() if not _is_passing(path.name))
    strangers = [name for name in names if name not in ("run.json", *_PARTS)]
    if strangers or (names and not folder.record.is_file()):
        raise ValueError(
            f"the output folder {folder.root} holds something else ({[*strangers, *names][0]}); name a new "
            "or empty folder"
        )


def _is_passing(name: str) -> bool:
    """Whether a file is one that a killed process may leave."""
    return name.startswith(".") and name.endswith((LOCK, TEMPORARY))
