"""A run on disk: what lies where, and who may write there.

::

    runs/digits/
      run.json                       what was asked, versions, device, schema version
      fits/softplus-0/               params.safetensors, fit.json, history.nc
      posterior/softplus.nc          draws for some held-out observations
      diagnostics.nc                 (guide, seed, observation)
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

__all__ = ["SCHEMA", "RunFolder", "claim"]

SCHEMA = 1
"""Version of the layout; a reader refuses a newer one."""

_OURS = ("run.json", "fits", "posterior", "diagnostics.nc", "compare.csv", "figures", "report.html")


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def diagnostics(self) -> Path:
        return self.root / "diagnostics.nc"

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
