"""Write the findings of a run and read them back; keep the parts of a diagnosis that is under way, so that an
interruption costs one of them and not all."""

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyro_vae.report.findings import MEASURES, REFINED, Findings
from pyro_vae.run_folder import RunFolder
from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.inspection import inspect_files
from pyro_vae.storage.netcdf import read_dataset, read_tree, write_netcdf
from pyro_vae.storage.records import read_record, write_record
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.shapes import check_findings, fitted_guides, read_image_shape
from pyro_vae.svi.state.saved import HISTORY, read_history

if TYPE_CHECKING:
    import xarray as xr

OPTIONAL = ("gaps", *REFINED)

PARTS_SCHEMA = 1

Content = TypeVar("Content")


def write_findings(folder: RunFolder, findings: Findings) -> dict[str, str]:
    """Write the measures, the posteriors and the comparison; histories lie beside the fits already.

    Returns
    -------
    dict
        The checksum of every file that :func:`read_findings` will read, by its path in the folder.
    """
    written: dict[Path, xr.Dataset | xr.DataTree] = {
        folder.measure(name): getattr(findings, name) for name in MEASURES
    }
    for name in OPTIONAL:
        if getattr(findings, name) is None:
            folder.measure(name).unlink(missing_ok=True)
        else:
            written[folder.measure(name)] = getattr(findings, name)
    written |= {folder.posterior(name): tree for name, tree in findings.posteriors.items()}
    if findings.comparison is not None:
        write_whole(folder.comparison, findings.comparison.to_csv().encode())
    return {
        path.relative_to(folder.root).as_posix(): write_netcdf(content, path)
        for path, content in written.items()
    }


def read_findings(folder: RunFolder, record: Mapping[str, Any]) -> Findings:
    """Read what :func:`write_findings` wrote, as somebody else's: nothing is read that the record does not
    name, nothing is believed that does not suit it. Raises ValueError if the run has not come to its end, or
    a file is missing, damaged or foreign."""
    result, files = record["result"], record.get("files", {})
    config = StudyConfig.from_record(record["config"])
    if result.get("status") != "done":
        raise ValueError(
            f"the run in {folder.root} is {result.get('status', 'unknown')!r} and not done; "
            f"`pyro-vae resume {folder.root}` goes on with it"
        )
    guides = fitted_guides(config, result, folder.record)
    image_shape = read_image_shape(result.get("image_shape"), folder.record)
    fits = {guide: [folder.fit(guide, seed) for seed in range(config.seeds)] for guide in guides}
    optional = {name: folder.measure(name) for name in OPTIONAL}
    measures = [folder.measure(name) for name in MEASURES]
    inspect_files(
        [
            *(*measures, *optional.values(), *map(folder.posterior, guides)),
            *(path / HISTORY for paths in fits.values() for path in paths),
        ]
    )

    def read(path: Path, reader: Callable[[Path, str], Content]) -> Content:
        return _complete(path, functools.partial(reader, path, _noted(files, folder, path)))

    kept: dict[str, Any] = {
        name: read(path, read_dataset) if path.name in files else None for name, path in optional.items()
    }
    findings = Findings(
        **{name: read(folder.measure(name), read_dataset) for name in MEASURES},
        histories={
            guide: [_complete(path, functools.partial(read_history, path)) for path in paths]
            for guide, paths in fits.items()
        },
        posteriors={guide: read(folder.posterior(guide), read_tree) for guide in guides},
        **kept,
        image_shape=image_shape,
        failures=dict(result.get("failures", {})),
    )
    check_findings(findings, config, guides, folder.root)
    return findings


def _complete(path: Path, read: Callable[[], Content]) -> Content:
    try:
        return read()
    except FileNotFoundError as error:
        raise ValueError(
            f"the run is not complete: there is no {path}; `pyro-vae resume` makes it"
        ) from error


def _noted(files: Mapping[str, Any], folder: RunFolder, path: Path) -> str:
    return str(files.get(path.relative_to(folder.root).as_posix()))


@dataclass(frozen=True)
class Parts:
    """A folder of named data sets that were made in a certain way."""

    folder: Path
    asked: Mapping[str, Any]
    """How, in plain values; what was made otherwise is made again."""

    def get(self, name: str, make: "Callable[[], Mapping[str, xr.Dataset]]") -> "dict[str, xr.Dataset]":
        """The data sets of this name, as they were kept; or made, kept and read back, so that the two do not
        differ."""
        import xarray as xr

        path, note = self._files(name)
        try:
            tree = read_tree(path, self._content(note))
        except (FileNotFoundError, ValueError, KeyError):
            self.folder.mkdir(exist_ok=True)
            content = write_netcdf(xr.DataTree.from_dict(dict(make())), path)
            write_record(note, {"schema": PARTS_SCHEMA, "asked": dict(self.asked), "content": content})
            tree = read_tree(path, content)
        return {str(key): child.to_dataset() for key, child in tree.children.items()}

    def has(self, name: str) -> bool:
        """Whether data sets of this name are noted as kept."""
        try:
            return bool(self._content(self._files(name)[1]))
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.nc", self.folder / f"{name}.json"

    def _content(self, note: Path) -> str:
        kept = read_record(note, PARTS_SCHEMA)
        if kept["asked"] != dict(self.asked):
            raise ValueError("it was made otherwise")
        return str(kept["content"])

    def clear(self) -> None:
        """Remove them all."""
        shutil.rmtree(self.folder, ignore_errors=True)
