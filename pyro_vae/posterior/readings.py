"""One line in words for each diagnostic: what it says about the guide, and what to do."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from pyro_vae.posterior.arguments import require_variables
from pyro_vae.posterior.belief import MATERIAL_SHARE, believed
from pyro_vae.posterior.pareto import SMALLEST_ESS

ALARM = 0.005
"""How often a right guide is called wrong by its marginals, and as often by its joint."""

SIDE = 0.05
"""p-value of its coverage with which a latent that is known to be wrong is called too narrow or too wide."""

KNOWN = 0.5
"""Nats between the bounds of an evidence that is called known."""

SHOWN = 4
"""Latents that a sentence names."""


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
    seeds = khat.sizes.get("seed", 1)
    over = f"{khat.size} observations" if seeds == 1 else f"{khat.size // seeds} observations × {seeds} seeds"
    sentence = (
        f"log evidence {evidence:.2f} and ELBO {elbo:.2f} nats per observation; k̂ is above "
        f"{attrs['khat_threshold']:.2f} for {share:.0%} of {over} ({attrs['draws']} draws, "
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
    parts = [gaps[f"{name}_gap"] for name in ("approximation", "amortization")]
    known = parts[0].notnull() & parts[1].notnull()
    if not bool(known.any()):
        return (
            "what q loses is not known: the evidence cannot be believed or q* has not converged for any of "
            f"{known.size} observations; give more steps"
        )
    unknown = int((~known).sum())
    told = f" (not known for {unknown} of {known.size} observations)" if unknown else ""
    family, encoder = (round(float(part.where(known).mean()), 2) + 0.0 for part in parts)  # no -0.00
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
        f"encoder{told}: {advice}"
    )


def coverage_reading(calibration: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.simulated.calibration.calibrate`: too narrow, too wide, beside, or right.

    Each latent is judged, because faults of several cancel in a mean: by how often its 90% intervals hold the
    truth, and by whether its transforms are uniform; then all together by the ranks of the log-likelihood. A
    right guide is called wrong in 1% of the calibrations, however many latents it has (Bonferroni).

    >>> calibration = xr.Dataset({"coverage": (("level", "latent"), [[0.74]])}, {"level": [0.9]})
    >>> print(coverage_reading(calibration.assign_attrs(simulations=1000)))
    q is too narrow: its 90% intervals cover 74% of the latents
    """
    require_variables("calibration", calibration, "calibrate", "coverage", "simulations")
    covered = calibration["coverage"].sel(level=0.9)
    apart = [dim for dim in covered.dims if dim != "latent"]  # seeds
    fits = int(np.prod([covered.sizes[dim] for dim in apart]))
    mean = np.atleast_1d(covered.mean(apart).values)
    names = (
        [str(name) for name in np.atleast_1d(calibration["latent"].values)]
        if "latent" in calibration
        else [f"latent {i}" for i in range(mean.size)]
    )
    trials = fits * int(calibration.attrs["simulations"])
    p = np.array([_binomial_p(round(float(share) * trials), trials) for share in mean])
    sure = p * mean.size < ALARM / 2
    off = np.zeros_like(sure)
    if "uniform_p" in calibration:
        uniform = calibration["uniform_p"]
        off = np.atleast_1d(uniform.min([dim for dim in uniform.dims if dim != "latent"]).values) * fits
        off = off < ALARM / 2
    sided = sure | (off & (p < SIDE))
    narrow, wide, off = sided & (mean < 0.9), sided & (mean > 0.9), off & ~sided
    total = f"its 90% intervals cover {mean.mean():.0%} of the latents"
    faults = {"too narrow": narrow, "too wide": wide, "beside the posterior, or of another shape": off}
    found = {fault: at for fault, at in faults.items() if at.any()}
    together = _joint_reading(calibration, fits)
    if not found:
        return f"the width of q is right{'' if not together else ' for each latent'}: {total}{together}"
    if len(found) == 1 and next(iter(found.values())).all():
        return f"q is {next(iter(found))}: {total}"
    told = "; ".join(
        f"{fault} in {_some([f'{names[i]} ({mean[i]:.0%})' for i in np.flatnonzero(at)])}"
        for fault, at in found.items()
    )
    return f"q is {told}, where 90% intervals should cover 90%"


def sandwich_reading(calibration: xr.Dataset) -> str:
    """Of :func:`~pyro_vae.posterior.simulated.calibration.calibrate`: how well the evidence is known of data
    that the model made itself.

    >>> bounds = {"evidence_lower": ("simulation", [-9.2]), "evidence_upper": ("simulation", [-9.0])}
    >>> print(sandwich_reading(xr.Dataset(bounds | {"sandwich": 0.2})))
    on data from the model, log evidence lies between -9.20 and -9.00 nats per observation: it is known to
    within 0.20
    """
    needed = ("evidence_lower", "evidence_upper", "sandwich")
    require_variables("calibration", calibration, "calibrate", *needed)
    lower, upper, apart = (float(calibration[name].mean()) for name in needed)
    if not np.isfinite(apart):
        return (
            "the evidence of data from the model has no upper bound: q's density at given latents is unknown"
        )
    apart = max(apart, 0.0)  # bounds that hold on average may cross by rounding
    verdict = f"it is known to within {apart:.2f}" if apart <= KNOWN else "these draws of q do not bound it"
    return (
        f"on data from the model, log evidence lies between {lower:.2f} and {upper:.2f} nats per "
        f"observation: {verdict}"
    )


def _joint_reading(calibration: xr.Dataset, fits: int) -> str:
    if "joint_p" not in calibration or float(calibration["joint_p"].min()) * fits >= ALARM:
        return ""
    return (
        "; and not jointly: ranks of the log-likelihood are not uniform, so q misses how latents depend on "
        "each other, or what the data say of them"
    )


def _binomial_p(successes: int, trials: int) -> float:
    """Two-sided, of a share of 90%."""
    below, above = stats.binom.cdf(successes, trials, 0.9), stats.binom.sf(successes - 1, trials, 0.9)
    return float(min(1.0, 2 * min(below, above)))


def _some(words: list[str]) -> str:
    shown = ", ".join(words[:SHOWN])
    return shown if len(words) <= SHOWN else f"{shown} and {len(words) - SHOWN} more"


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
