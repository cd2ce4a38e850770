"""Tell the sample sites of a traced program: which count, where they lie, what their numbers are called."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyro.poutine.util import site_is_subsample


class PairError(ValueError):
    """The pair has no per-observation densities; the message says why."""


class SharedLatentError(PairError):
    """A site lies outside of the plate of the observations: what it means is joint, and not of one."""


class DataPlate(NamedTuple):
    """The plate of the observations: where it lies, and its names; any at this dim if they are not known."""

    dim: int = -1
    names: frozenset[str] = frozenset()


def coordinate_names(site: str, shape: Sequence[int]) -> list[str]:
    """Names of the numbers in one value of a site.

    >>> coordinate_names("z", (2,)), coordinate_names("w", ())
    (['z[0]', 'z[1]'], ['w'])
    """
    if not shape:
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def site_dims(
    shapes: Mapping[str, Sequence[int]], word: str, shared: Container[str] = ()
) -> dict[str, list[str]]:
    """Dimension names of sites with these event shapes: ``word`` for the only vector, else numbered. Those
    that the observations share have no dimension ``observation``.

    >>> site_dims({"z": (8,), "scale": ()}, "latent", shared=["scale"])
    {'z': ['observation', 'latent'], 'scale': []}
    >>> site_dims({"image": (28, 28)}, "feature")
    {'image': ['observation', 'image_dim_0', 'image_dim_1']}
    """
    vectors = [site for site, shape in shapes.items() if len(shape) == 1]
    dims = {}
    for site, shape in shapes.items():
        event = [f"{site}_dim_{i}" for i in range(len(shape))]
        # a dimension named like a variable would replace it
        own = [word] if vectors == [site] and site != word else event
        dims[site] = own if site in shared else ["observation", *own]
    return dims


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sites with a density of their own."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def drawn_sites(trace: Any) -> dict[str, Any]:
    """The sites that a guide draws. What it observes or adds by ``pyro.factor``, as losses of a classifier
    are written, is no part of log q."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def in_data_plate(site: Any, plate: DataPlate = DataPlate()) -> bool:  # noqa: B008  # it is frozen
    """Whether a site is in the plate of the observations."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized and frame.dim == plate.dim]
    return any(not plate.names or frame.name in plate.names for frame in frames)


def shared_latent(name: str) -> str:
    """What to say of a site outside of the plate of the observations."""
    return (
        f"site '{name}' is not in a plate over the observations at dim -1, so it has no density per "
        "observation; put it into pyro.plate('data', len(x)) if it belongs to one; if all share it, ask "
        "log_weights, diagnose, from_pyro_svi, repair, inference_gaps or reference_posterior, which take the "
        "joint posterior"
    )


def paired_sites(
    guide_trace: Any, model_trace: Any, summed: Container[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the guide draws; the model's latents, without those that are summed out; what it observes. Raises
    PairError unless the guide draws what the model does."""
    guide_sites, model_sites = drawn_sites(guide_trace), sample_sites(model_trace)
    latents = {
        name: site for name, site in model_sites.items() if not site["is_observed"] and name not in summed
    }
    observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
    _check_sites(guide_sites, latents)
    return guide_sites, latents, observed


def _check_sites(guide_sites: dict[str, Any], latents: dict[str, Any]) -> None:
    """Raise a PairError unless the guide draws what the model does."""
    missing = sorted(latents.keys() - guide_sites.keys())
    if missing:
        raise PairError(
            f"the guide has no site '{missing[0]}', which the model draws; add it to the guide, "
            "or marginalize it in the model"
        )
    named = {name for name, site in guide_sites.items() if not site["infer"].get("is_auxiliary")}
    unknown = sorted(named - latents.keys())
    if unknown:
        raise PairError(
            f"the guide draws '{unknown[0]}', which is no latent site of the model "
            f"({sorted(latents)}); rename it, or mark it infer={{'is_auxiliary': True}}"
        )


def wrong_rows(name: str, found: int, expected: int) -> str:
    return (
        f"site '{name}' has {found} rows where {expected} observations were given; the plate must have "
        "one row for each observation passed in, without subsampling of its own"
    )
