"""Check that a run's folder holds what its record asks for: names, sizes and kinds of numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.report.findings import Findings
from pyro_vae.study.config import StudyConfig

if TYPE_CHECKING:
    import xarray as xr

BY_GUIDE = ("guide", "seed")
ARRAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "diagnostics": dict.fromkeys(("log_evidence", "elbo", "kl", "khat"), (*BY_GUIDE, "observation")),
    "calibration": {
        "pit": (*BY_GUIDE, "simulation", "latent"),
        "coverage": (*BY_GUIDE, "level", "latent"),
    },
    "refined": dict.fromkeys(("log_evidence", "elbo", "khat"), (*BY_GUIDE, "observation")),
    "refined_calibration": {"coverage": (*BY_GUIDE, "level", "latent")},
    "units": dict.fromkeys(("kl", "active"), (*BY_GUIDE, "latent")),
    "latents": dict.fromkeys(("mean", "scale"), (*BY_GUIDE, "observation", "latent")),
    "gaps": dict.fromkeys(("approximation_gap", "amortization_gap"), ("guide", "observation")),
}
"""What every measure holds at least, and over which dimensions."""

NOTED: dict[str, tuple[str, ...]] = {
    "diagnostics": ("khat_threshold", "draws", "latent_dim"),
    "calibration": ("simulations",),
    "refined": ("khat_threshold", "draws", "latent_dim"),
    "refined_calibration": ("simulations",),
}
"""Attributes of the measures that are numbers."""

GROUPS = ("posterior", "posterior_predictive", "observed_data", "prior_predictive")

LARGEST_SIDE = 65_536


def fitted_guides(config: StudyConfig, result: Mapping[str, Any], path: Path) -> list[str]:
    """The guides of a run that is done, as its record at ``path`` tells. Raises ValueError if it tells it in
    a way that no run does."""
    failures = result.get("failures", {})
    if not isinstance(failures, dict) or any(not isinstance(text, str) for text in failures.values()):
        raise ValueError(f"{path} has failures that are no text; it is damaged or foreign")
    return [name for name in config.arms if name not in failures]


def read_image_shape(given: Any, path: Path) -> tuple[int, ...] | None:
    """The shape of an image as a record at ``path`` tells it. Raises ValueError if it is none.

    Examples
    --------
    >>> read_image_shape([8, 8], Path("run.json"))
    (8, 8)
    >>> read_image_shape([8, 0.5], Path("run.json"))
    Traceback (most recent call last):
        ...
    ValueError: run.json has the image shape [8, 0.5], which is none; it is damaged or foreign
    """
    if given is None:
        return None
    sides = given if isinstance(given, list) and 2 <= len(given) <= 3 else [0]
    if any(type(side) is not int or not 0 < side <= LARGEST_SIDE for side in sides):
        raise ValueError(
            f"{path} has the image shape {str(given)[:80]}, which is none; it is damaged or foreign"
        )
    return tuple(sides)


def check_findings(findings: Findings, config: StudyConfig, guides: Sequence[str], folder: Path) -> None:
    """See that findings that were read from a folder are those of such a study. Raises ValueError if not, by
    the first thing that is missing or different."""
    sizes = {"guide": len(guides), "seed": config.seeds}
    if config.program is None:
        sizes["latent"] = config.latent_dim
    for measure, arrays in ARRAYS.items():
        data = getattr(findings, measure)
        if data is None:
            continue
        _check_arrays(data, arrays, sizes, f"{measure} in {folder}")
        if "guide" not in data.coords or data["guide"].values.tolist() != list(guides):
            raise _foreign(f"{measure} in {folder}", f"is not of the guides {', '.join(guides)}")
        for name in NOTED.get(measure, ()):
            if not isinstance(data.attrs.get(name), int | float) and not _is_number(data.attrs.get(name)):
                raise _foreign(f"{measure} in {folder}", f"has no number {name!r}")
    if findings.diagnostics.sizes["observation"] != findings.latents.sizes["observation"]:
        raise _foreign(f"latents in {folder}", "has other observations than diagnostics")
    for histories in findings.histories.values():
        for history in histories:
            kept: dict[str, tuple[str, ...]] = {"loss": ("step",), "epoch_step": ("epoch",)}
            if config.program is None or "scale" in history:
                kept["scale"] = ("epoch", "latent")
            _check_arrays(history, kept, sizes, f"fits in {folder}")
    groups = (*GROUPS, *([] if config.program is not None else ["traversal"]))
    for name, tree in findings.posteriors.items():
        _check_tree(tree, groups, findings.image_shape, f"the posterior of {name} in {folder}")


def _check_arrays(
    data: "xr.Dataset", arrays: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int], where: str
) -> None:
    for name, dims in arrays.items():
        if name not in data or data[name].dims != dims:
            raise _foreign(where, f"has no {name!r} over {', '.join(dims)}")
        if data[name].dtype.kind not in "fiub":
            raise _foreign(where, f"has no numbers in {name!r}")
        for dim in dims:
            if data.sizes[dim] != sizes.get(dim, data.sizes[dim]) or data.sizes[dim] == 0:
                raise _foreign(
                    where, f"has {data.sizes[dim]} of {dim} in {name!r}, not {sizes.get(dim, 'any')}"
                )


def _check_tree(
    tree: "xr.DataTree", groups: Sequence[str], image_shape: tuple[int, ...] | None, where: str
) -> None:
    for group in groups:
        if group not in tree.children or not tree[group].to_dataset().data_vars:
            raise _foreign(where, f"has no {group}")
    data = tree["observed_data"].to_dataset()
    observed = data[next(iter(data.data_vars))]
    if observed.ndim < 2 or observed.dims[0] != "observation":
        raise _foreign(where, "has no observations in observed_data")
    features = math.prod(observed.shape[1:])
    if image_shape is not None and math.prod(image_shape) != features:
        raise _foreign(where, f"has {features} features, and the record's images have {image_shape}")


def _is_number(value: Any) -> bool:
    return getattr(value, "ndim", 1) == 0 and getattr(value.dtype, "kind", "") in "fiu"


def _foreign(where: str, what: str) -> ValueError:
    return ValueError(
        f"{where} cannot be read: it {what}, and so is none of this run; it is damaged or foreign"
    )
