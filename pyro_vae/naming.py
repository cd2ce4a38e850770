"""What numbers are called where they are shown, and their units: ``long_name`` and ``units`` in xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

NATS, EACH, SPREAD, DRAWS, ONE = "nats", "nats per observation", "standard deviations", "draws", "1"

NAMES: dict[str, tuple[str, str]] = {
    # what importance weights say of an observation
    "log_weight": ("log importance weight, log p(x, z) − log q(z|x)", NATS),
    "elbo": ("ELBO", NATS),
    "log_evidence": ("log evidence, log p(x)", NATS),
    "log_evidence_se": ("standard error of the log evidence", NATS),
    "khat": ("Pareto k̂ of the importance weights", ONE),
    "ess": ("effective number of draws", DRAWS),
    "kl": ("KL of q(z|x) from the prior", NATS),
    "reconstruction": ("E_q log p(x|z)", NATS),
    "rounds": ("rounds of importance draws", ONE),
    "elbo_guide": ("ELBO of the guide's own Normal", NATS),
    "converged": ("whether q has converged", ""),
    # gaps
    "elbo_local": ("ELBO of the best q of the guide's family", NATS),
    "approximation_gap": ("log evidence − ELBO of the best q", NATS),
    "amortization_gap": ("ELBO of the best q − ELBO of the guide", NATS),
    "khat_local": ("Pareto k̂ of the best q's draws", ONE),
    "believable": ("whether the evidence can be believed", ""),
    # repair and chains
    "step": ("where the draws come from", ""),
    "rhat": ("R̂ of the chains", ONE),
    "modes": ("modes that were found", ONE),
    # calibration
    "pit": ("Q(z) at the latent that made the data", ONE),
    "coverage": ("share of the truth within the central interval", ONE),
    "below": ("share of the truth below the guide's median", ONE),
    "uniform_p": ("p-value of uniform transforms", ONE),
    "joint_pit": ("rank of the log-likelihood at the latents that made the data", ONE),
    "joint_p": ("p-value of uniform ranks of the log-likelihood", ONE),
    "evidence_lower": ("lower bound of the log evidence", NATS),
    "evidence_upper": ("upper bound of the log evidence", NATS),
    "sandwich": ("mean distance of the bounds of the log evidence", NATS),
    # latents
    "activity": ("variance of the posterior means, in variances of the prior", ONE),
    "active": ("whether the data move the latent", ""),
    "mean": ("mean of q(z|x)", ""),
    "scale": ("standard deviation of q(z|x)", ""),
    # against a reference
    "mean_error": ("distance of the means", SPREAD),
    "sd_ratio": ("standard deviation of the guide by that of the reference", ONE),
    "wasserstein": ("Wasserstein-1 distance", SPREAD),
}
"""By the name of a variable. Truth values and labels have no units; latents have their own."""

OF_FITS: dict[str, tuple[str, str]] = {
    "loss": ("loss", EACH),
    "validation": ("loss on validation data", EACH),
    "kl": ("KL of q(z|x) from the prior", EACH),
    "reconstruction": ("E_q log p(x|z)", EACH),
    "grad_norm": ("norm of the gradient of the loss", EACH),
    "nonfinite": ("steps that were skipped, not being finite", ONE),
}
"""Of a fit's history, whose numbers are means."""

OF_PAIRS: dict[str, tuple[str, str]] = {
    "difference": ("mean difference", EACH),
    "mean": ("mean difference over seeds", EACH),
    "low": ("lower end of the joint 95% interval", EACH),
    "high": ("upper end of the joint 95% interval", EACH),
    "decided": ("whether the interval excludes zero", ""),
}
"""Of the differences of two guides."""

OF_COMPARISON: dict[str, tuple[str, str]] = {
    "rank": ("rank, best first", ONE),
    "elpd": ("log evidence of all observations", NATS),
    "se": ("standard error of it over observations", NATS),
    "elpd_diff": ("its difference to the best guide", NATS),
    "dse": ("standard error of the difference over observations", NATS),
    "weight": ("stacking weight", ONE),
    "p_worse": ("probability to be worse than the best guide", ONE),
    "diff": ("difference to the best guide", EACH),
    "diff_low": ("lower end of its joint 95% interval", EACH),
    "diff_high": ("upper end of its joint 95% interval", EACH),
    "decided": ("whether the interval excludes zero", ""),
    "seeds": ("fits of each guide", ONE),
    "unbelieved": ("share of the observations whose weights cannot be believed", ONE),
}
"""Columns of the table of guides."""

Names = Mapping[str, tuple[str, str]]


def named(data: xr.Dataset, names: Names = NAMES) -> xr.Dataset:
    """The same numbers, each variable that the table knows with its ``long_name`` and, if it has any, its
    ``units``.

    Examples
    --------
    >>> import xarray as xr
    >>> named(xr.Dataset({"khat": ("observation", [0.3])}))["khat"].attrs
    {'long_name': 'Pareto k̂ of the importance weights', 'units': '1'}
    """
    for name, array in data.data_vars.items():
        if str(name) in names:
            array.attrs |= attributes(*names[str(name)])
    return data


def attributes(long_name: str, units: str = "") -> dict[str, str]:
    """Of a variable; what has no units does not name them."""
    return {"long_name": long_name} | ({"units": units} if units else {})


def named_columns(table: pd.DataFrame, names: Names = OF_COMPARISON) -> pd.DataFrame:
    """The table with the same attributes of its columns, by column: a data frame has none of single ones."""
    known = {str(column): names[str(column)] for column in table if str(column) in names}
    table.attrs["long_name"] = {column: called for column, (called, _) in known.items()}
    table.attrs["units"] = {column: units for column, (_, units) in known.items() if units}
    return table
