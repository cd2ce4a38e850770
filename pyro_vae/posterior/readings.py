"""One line in words for each diagnostic: what it says about the guide, and what to do."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pyro_vae.posterior.arguments import require_variables
from pyro_vae.posterior.belief import MATERIAL_SHARE, believed
from pyro_vae.posterior.pareto import SMALLEST_ESS

__all__ = ["coverage_reading", "evidence_reading", "gaps_reading", "units_reading"]


def evidence_reading(diagnostics: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.importance.diagnose`: the numbers, and whether to believe them.

    >>> values = {"log_evidence": ("observation", [-9.0, -11.0]), "elbo": ("observation", [-10.0, -12.0])}
    >>> report = xr.Dataset(values | {"khat": ("observation", [0.2, 1.3])})
    >>> print(evidence_reading(report.assign_attrs(draws=1000, latent_dim=8, khat_threshold=0.667)))
    log evidence -10.00 and ELBO -11.00 nats per observation; k̂ is above 0.67 for 50% of 2 observations (1000
    draws, 8 latent dimensions): there the evidence is rather too low; refine the guide, or repair
    """
    require_variables(
        "diagnostics", diagnostics, "diagnose", "khat", "log_evidence", "elbo", "khat_threshold"
    )
    attrs, khat = diagnostics.attrs, diagnostics["khat"]
    share = float((khat > attrs["khat_threshold"]).mean())
    evidence, elbo = (float(diagnostics[name].mean()) for name in ("log_evidence", "elbo"))
    good = believed(diagnostics)
    lost = 0.0 if good is None else float((~good).mean())
    few = lost - share  # a good k̂, and hardly a draw behind it
    sentence = (
        f"log evidence {evidence:.2f} and ELBO {elbo:.2f} nats per observation; k̂ is above "
        f"{attrs['khat_threshold']:.2f} for {share:.0%} of {khat.size} observations ({attrs['draws']} draws, "
        f"{attrs['latent_dim']} latent dimensions)"
    )
    if few > 0:
        sentence += f", and fewer than {SMALLEST_ESS} draws are effective for {few:.0%} more"
    if lost > MATERIAL_SHARE:
        return f"{sentence}: there the evidence is rather too low; refine the guide, or repair"
    if lost > 0:
        return f"{sentence}: there the evidence is rather too low; the others' weights can be believed"
    return f"{sentence}: the weights can be believed where the guide's draws reach"


def gaps_reading(gaps: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.gaps.inference_gaps`: where the larger part of the gap comes from.

    >>> values = {"approximation_gap": ("observation", [0.5]), "amortization_gap": ("observation", [8.5])}
    >>> print(gaps_reading(xr.Dataset(values)))
    q loses 9.00 nats per observation, 0.50 to its family and 8.50 to its encoder: it needs a better encoder,
    or more data
    """
    require_variables("gaps", gaps, "inference_gaps", "approximation_gap", "amortization_gap")
    means = (float(gaps[f"{name}_gap"].mean()) for name in ("approximation", "amortization"))
    family, encoder = (round(mean, 2) + 0.0 for mean in means)  # no -0.00
    total = family + encoder
    if total < 0.01:
        advice = "nothing to gain"
    elif encoder > family:
        # Not "train longer": on observations that no fit saw, the loss to the encoder can grow with training.
        advice = "it needs a better encoder, or more data"
    else:
        advice = "try a full covariance or a flow"
    return (
        f"q loses {total:.2f} nats per observation, {family:.2f} to its family and {encoder:.2f} to its "
        f"encoder: {advice}"
    )


def coverage_reading(calibration: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.calibration.calibrate`: too narrow, too wide, or right.

    Right means that the mean coverage is within three standard errors of 90% for this number of simulations.

    >>> calibration = xr.Dataset({"coverage": (("level", "latent"), [[0.74]])}, {"level": [0.9]})
    >>> print(coverage_reading(calibration.assign_attrs(simulations=1000)))
    q is too narrow: its 90% intervals cover 74% of the latents
    """
    require_variables("calibration", calibration, "calibrate", "coverage", "simulations")
    covered = float(calibration["coverage"].sel(level=0.9).mean())
    error = 3 * np.sqrt(0.9 * 0.1 / calibration.attrs["simulations"])
    verdict = "too narrow" if covered < 0.9 else "too wide"
    lead = "the width of q is right" if abs(covered - 0.9) <= error else f"q is {verdict}"
    return f"{lead}: its 90% intervals cover {covered:.0%} of the latents"


def units_reading(units: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.collapse.active_units`: how many dimensions are used.

    >>> print(units_reading(xr.Dataset({"active": ("latent", [True, False])}, {"latent": ["z[0]", "z[1]"]})))
    1 of 2 latent dimensions is active; collapsed: z[1]
    """
    require_variables("units", units, "active_units", "active")
    active = units["active"].values
    collapsed = [str(name) for name in units["latent"].values[~active]]
    verb = "is" if active.sum() == 1 else "are"
    told = f"; collapsed: {', '.join(collapsed)}" if collapsed else ""
    return f"{active.sum()} of {active.size} latent dimensions {verb} active{told}"
