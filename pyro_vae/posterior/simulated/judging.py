"""Calibration at the data themselves, by a judge for a few of them."""

from __future__ import annotations

import xarray as xr

from pyro_vae.posterior.reference import matched_draws
from pyro_vae.posterior.simulated.calibration import LEVELS


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
        :func:`~pyro_vae.posterior.reference.reference_posterior`, or from
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
    >>> import numpy as np
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
    return xr.Dataset({"coverage": coverage, "below": below})
