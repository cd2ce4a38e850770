"""Measure how far the draws of a guide are from those of a judge."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pyro_vae.naming import named
from pyro_vae.posterior.arguments import require_tree
from pyro_vae.posterior.simulated.calibration import LEVELS
from pyro_vae.posterior.truth.chains import all_latents


def posterior_error(tree: xr.DataTree, reference: xr.DataTree) -> xr.Dataset:
    """How far the draws of a guide are from those of a reference, for each observation and latent number.

    Parameters
    ----------
    tree
        From :func:`~pyro_vae.posterior.tree.from_pyro_svi`.
    reference
        From :func:`~pyro_vae.posterior.truth.reference.reference_posterior` with the same model. Observations
        are matched by their labels.

    Returns
    -------
    xr.Dataset
        Over (observation, latent), in units of the reference's standard deviation: ``mean_error``, the
        absolute difference of the means; ``sd_ratio``, the guide's standard deviation (below 1: too narrow);
        ``wasserstein``, the Wasserstein-1 distance of the marginals.

    Raises
    ------
    ValueError
        If the trees have no observation or latent in common.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> def tree(scale):
    ...     import arviz_base
    ...     draws = rng.normal(0, scale, size=(1, 4000, 1))
    ...     return arviz_base.from_dict({"posterior": {"z": draws}}, dims={"z": ["observation"]})
    >>> posterior_error(tree(0.5), tree(1.0))["sd_ratio"].round(1).values
    array([[0.5]])
    """
    guide, truth = matched_draws(tree, reference)
    scale = truth.std("sample", ddof=1)
    quantiles = [_quantiles(each) for each in (guide, truth)]
    found = xr.Dataset(
        {
            "mean_error": abs(guide.mean("sample") - truth.mean("sample")) / scale,
            "sd_ratio": guide.std("sample", ddof=1) / scale,
            "wasserstein": abs(quantiles[0] - quantiles[1]).mean("quantile") / scale,
        },
        attrs={"method": reference["posterior"].attrs.get("method", "unknown")},
    )
    return named(found)


def local_coverage(tree: xr.DataTree, reference: xr.DataTree) -> xr.Dataset:
    """How much of each true posterior the guide's intervals hold: calibration at the data themselves.

    :func:`~pyro_vae.posterior.simulated.calibration.calibrate` asks about data that the model makes; an
    encoder may be right there and wrong for real ones. Here a judge answers for a few of these.

    Parameters
    ----------
    tree
        From :func:`~pyro_vae.posterior.tree.from_pyro_svi`.
    reference
        Draws of the judge for some of its observations, matched by their labels: from
        :func:`~pyro_vae.posterior.truth.reference.reference_posterior`, or from
        :func:`~pyro_vae.posterior.repair.ladder.repair` where it believes them.

    Returns
    -------
    xr.Dataset
        ``coverage`` over (level, observation, latent): the share of the judge's draws in the guide's central
        interval of each level, and ``below`` over (observation, latent): the share below its median.

    Raises
    ------
    ValueError
        If the trees have no observation or latent in common.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> def tree(scale):
    ...     import arviz_base
    ...     draws = rng.normal(0, scale, size=(1, 4000, 1))
    ...     return arviz_base.from_dict({"posterior": {"z": draws}}, dims={"z": ["observation"]})
    >>> local_coverage(tree(0.5), tree(1.0))["coverage"].sel(level=0.9).round(1).values
    array([[0.6]])
    """
    guide, truth = matched_draws(tree, reference)
    levels = list(LEVELS)
    ends = [guide.quantile([(1 - level) / 2, (1 + level) / 2], dim="sample").values for level in levels]
    draws = truth.transpose("sample", "observation", "latent")
    inside = [((draws >= low) & (draws <= high)).mean("sample") for low, high in ends]
    coverage = xr.concat(inside, "level").assign_coords(level=levels)
    below = (draws < guide.median("sample")).mean("sample")
    return named(xr.Dataset({"coverage": coverage, "below": below}))


def matched_draws(tree: xr.DataTree, reference: xr.DataTree) -> tuple[xr.DataArray, xr.DataArray]:
    """The draws of both for the observations and latents that they share."""
    require_tree("tree", tree)
    require_tree("reference", reference)
    guide, truth = (all_latents(each["posterior"].to_dataset()) for each in (tree, reference))
    guide, truth = xr.align(guide, truth, join="inner", exclude=["sample"])
    if guide.sizes.get("observation") == 0 or guide.sizes["latent"] == 0:
        raise ValueError(
            "the tree and the reference have no observation and latent in common; draw both for the same "
            "observations"
        )
    return guide, truth


def _quantiles(flat: xr.DataArray) -> xr.DataArray:
    """1000 quantiles of each marginal: draws of different number become comparable."""
    return flat.quantile((np.arange(1000) + 0.5) / 1000, dim="sample", method="hazen")
