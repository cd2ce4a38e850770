"""A run on disk: what lies where, and who may write there.

::

    runs/digits/
      run.json                       what was asked, versions, device, schema version
      fits/softplus-0/               params.safetensors, fit.json, history.nc
      posterior/softplus.nc          draws for some held-out observations
      diagnostics.nc                 (guide, seed, observation): evidence, ELBO, k̂ …
      calibration.nc units.nc latents.nc    (guide, seed, …)
      gaps.nc                        (guide, observation), of each first fit
      compare.csv
      figures/*.png  report.html
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "RunFolder", "claim", "open_run", "parse_record"]

SCHEMA = 1
"""Version of the layout; a reader refuses a newer one."""

_MEASURES = ("diagnostics", "calibration", "units", "latents", "gaps")
_OURS = (
    "run.json",
    "fits",
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
        return self.root / "run.json"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def comparison(self) -> Path:
        return self.root / "compare.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def fit(self, guide: str, seed: int) -> Path:
        return self.root / "fits" / f"{guide}-{seed}"

    def posterior(self, guide: str) -> Path:
        return self.root / "posterior" / f"{guide}.nc"

    def measure(self, name: str) -> Path:
        """File of one of the measures: "diagnostics", "calibration", "units", "latents" or "gaps"."""
        return self.root / f"{name}.nc"

    def read_record(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises
        ------
        ValueError
            If it is damaged, or was written by a newer version.
        """
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.record} cannot be read ({error}); it is damaged or foreign") from error
        return parse_record(content, self.record)

    def write_record(self, config: Mapping[str, Any], device: str, result: Mapping[str, Any]) -> None:
        """Write ``run.json``: the request, what ran it, and (when it is known) the result."""
        versions = {
            name: version(name) for name in ("torch", "pyro-ppl", "arviz-base", "arviz-stats", "numpy")
        }
        record = {
            "schema": SCHEMA,
            "config": dict(config),
            "device": device,
            "versions": {"pyro-vae": version("pyro-vae"), "python": sys.version.split()[0], **versions},
            "result": dict(result),
        }
        self.record.write_text(json.dumps(record, indent=2) + "\n")


def parse_record(content: Any, path: Path) -> dict[str, Any]:
    """Check what a ``run.json`` holds.

    Raises
    ------
    ValueError
        If it is no record of a run, or of a newer schema.
    """
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{path} is no record of a run: it has no schema")
    schema = content["schema"]
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "update pyro-vae to read it" if newer else "it is damaged or foreign"
        raise ValueError(
            f"{path} has schema {schema!r}, and this version of pyro-vae reads schema {SCHEMA}: {advice}"
        )
    for part in ("config", "result"):
        if not isinstance(content.get(part), dict):
            raise ValueError(f"{path} has no {part!r}; it is damaged or foreign")
    return content


def open_run(root: str | Path) -> RunFolder:
    """The folder of a run that exists.

    Raises
    ------
    FileNotFoundError
        If there is no run in it.
    """
    folder = RunFolder(Path(root))
    if not folder.record.is_file():
        raise FileNotFoundError(
            f"{folder.root} holds no run: there is no run.json in it; give a folder that "
            "`pyro-vae compare` or `pyro-vae fit` has written"
        )
    return folder


def claim(root: str | Path) -> RunFolder:
    """Take a folder for a run: a new or empty one, or one with an earlier run, which is replaced.

    Raises
    ------
    ValueError
        If the folder holds something that is not a run, or cannot be written; nothing is removed then.

    Examples
    --------
    >>> import tempfile
    >>> folder = claim(Path(tempfile.mkdtemp()) / "digits")
    >>> folder.fit("softplus", 0).name
    'softplus-0'
    """
    folder = RunFolder(Path(root))
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        strangers = sorted(path.name for path in folder.root.iterdir() if path.name not in _OURS)
        holds_run = folder.record.is_file()
        if strangers or (any(folder.root.iterdir()) and not holds_run):
            found = strangers[0] if strangers else sorted(p.name for p in folder.root.iterdir())[0]
            raise ValueError(
                f"the output folder {folder.root} holds something else ({found}); name a new or empty "
                "folder, or one with an earlier run, which is replaced"
            )
        for name in _OURS:
            path = folder.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not os.access(folder.root, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"the output folder {folder.root} cannot be written ({reason}); name another"
        ) from error
    for name in ("fits", "posterior", "figures"):
        (folder.root / name).mkdir()
    return folder
