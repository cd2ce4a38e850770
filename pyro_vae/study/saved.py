"""The findings of a run in its folder: written, and read back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.report.findings import MEASURES, Findings
from pyro_vae.run_folder import RunFolder

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["read_findings", "write_findings"]


def write_findings(folder: RunFolder, findings: Findings) -> None:
    """Write the measures, the posteriors and the comparison; histories lie beside the fits already."""
    for name in MEASURES:
        measure: xr.Dataset = getattr(findings, name)
        measure.to_netcdf(folder.measure(name), engine="h5netcdf")
    folder.measure("gaps").unlink(missing_ok=True)
    if findings.gaps is not None:
        findings.gaps.to_netcdf(folder.measure("gaps"), engine="h5netcdf")
    for name, tree in findings.posteriors.items():
        tree.to_netcdf(folder.posterior(name), engine="h5netcdf")
    if findings.comparison is not None:
        findings.comparison.to_csv(folder.comparison)


def read_findings(folder: RunFolder, record: dict[str, Any]) -> Findings:
    """Read what :func:`write_findings` wrote.

    Raises
    ------
    ValueError
        If the run has not come to its end, or a file is missing or damaged.
    """
    import xarray as xr

    result = record["result"]
    if result.get("status") != "done":
        raise ValueError(
            f"the run in {folder.root} is {result.get('status', 'unknown')!r} and not done; run it again"
        )
    measures = {name: _read(folder.measure(name), xr.load_dataset) for name in MEASURES}
    gaps = folder.measure("gaps")
    guides = [str(name) for name in measures["diagnostics"]["guide"].values]
    seeds = measures["diagnostics"].sizes["seed"]
    image_shape = result.get("image_shape")
    return Findings(
        histories={
            guide: [_read(folder.fit(guide, seed) / "history.nc", xr.load_dataset) for seed in range(seeds)]
            for guide in guides
        },
        posteriors={guide: _read(folder.posterior(guide), _load_tree) for guide in guides},
        gaps=_read(gaps, xr.load_dataset) if gaps.exists() else None,
        image_shape=None if image_shape is None else tuple(image_shape),
        failures=dict(result.get("failures", {})),
        **measures,
    )


def _load_tree(path: Path, *, engine: str) -> "xr.DataTree":
    import xarray as xr

    with xr.open_datatree(path, engine=engine) as lazy:
        return lazy.load()


def _read(path: Path, load: Any) -> Any:
    if not path.is_file():
        raise ValueError(f"the run is not complete: there is no {path}; run it again")
    try:
        return load(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is damaged or foreign") from error
