"""What a report is about: everything that was measured of some guides on the same held-out data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from pyro_vae.posterior import answer, compare
from pyro_vae.posterior.belief import believed

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MEASURES = ("diagnostics", "calibration", "units", "latents")
"""The data sets over (guide, seed, …)."""
REFINED = ("refined", "refined_calibration")
"""The same of refined guides, which runs of version 0.1 do not have."""


@dataclass(frozen=True)
class Findings:
    """Measured of several guides, each fitted with the same seeds. Densities are in nats."""

    histories: "Mapping[str, Sequence[xr.Dataset]]"
    """By guide, the training history of each seed, with ``scale`` (epoch, latent): the guide's σ."""
    diagnostics: "xr.Dataset"
    """(guide, seed, observation), from :func:`~pyro_vae.posterior.importance.diagnose`."""
    calibration: "xr.Dataset"
    """(guide, seed, …), from :func:`~pyro_vae.posterior.simulated.calibration.calibrate`."""
    units: "xr.Dataset"
    """(guide, seed, latent), from :func:`~pyro_vae.posterior.collapse.active_units`."""
    latents: "xr.Dataset"
    """``mean`` and ``scale`` of q(z|x), (guide, seed, observation, latent); with ``label`` where known."""
    gaps: "xr.Dataset | None"
    """(guide, observation) of each first fit, from :func:`~pyro_vae.posterior.gaps.inference_gaps`."""
    posteriors: "Mapping[str, xr.DataTree]"
    """By guide, the first seed's draws for a few observations, ``prior_predictive`` and ``traversal``; draws
    that are nearer the posterior in ``repaired``, and what is known of them in ``repair``."""
    refined: "xr.Dataset | None" = None
    """As ``diagnostics``, of the refined guides: the evidence that can be believed."""
    refined_calibration: "xr.Dataset | None" = None
    """As ``calibration``, of the refined guides."""
    image_shape: tuple[int, ...] | None = None
    """(height, width) or (channels, height, width) if an observation is an image."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Guides that could not be fitted, and why; they are in nothing else."""

    @property
    def guides(self) -> list[str]:
        """Their names, in the order they were asked for."""
        return [str(name) for name in self.diagnostics["guide"].values]

    def by_guide(self, measure: str) -> "dict[str, xr.Dataset]":
        """One of :data:`MEASURES` or ``gaps``, by guide."""
        return {name: getattr(self, measure).sel(guide=name) for name in self.guides}

    @cached_property
    def comparison(self) -> "pd.DataFrame | None":
        """From :func:`~pyro_vae.posterior.comparison.compare`, by the refined evidence where there is one;
        None if there is one guide only."""
        return compare(self.by_guide(self.evidence)) if len(self.guides) > 1 else None

    @property
    def evidence(self) -> str:
        """The measure whose evidence ranks the guides."""
        return "diagnostics" if self.refined is None else "refined"

    @property
    def answer(self) -> str:
        """What the comparison says, in a sentence or two."""
        if self.comparison is None:
            reached = f"{float(getattr(self, self.evidence)['log_evidence'].mean()):.2f} nats per observation"
            sentence = (
                f"{self.guides[0]} reaches a log evidence of {reached}; "
                "there is no other guide to compare it with."
            )
        else:
            sentence = answer(self.comparison)
        if self.failures:
            sentence += f" Left out, because a fit failed: {', '.join(self.failures)}."
        return sentence

    def summary(self) -> "pd.DataFrame":
        """One row per guide, best first, for people: means over seeds and held-out observations.

        Columns: log evidence in nats per observation; and, where guides were compared, the paired difference
        to the best one, its 95% interval, whether that decides, and the stacking weight.
        """
        import pandas as pd

        means = getattr(self, self.evidence)["log_evidence"].mean(["seed", "observation"])
        table = pd.DataFrame({"evidence": means.values}, index=pd.Index(self.guides, name="guide"))
        if self.comparison is None:
            return table
        table = table.loc[self.comparison.index]
        low, high = self.comparison["diff_low"], self.comparison["diff_high"]
        table["diff"] = self.comparison["diff"]
        table["95% interval"] = [
            "" if math.isnan(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)
        ]
        table["decided"] = ["yes" if decided else "no" for decided in self.comparison["decided"]]
        table["weight"] = self.comparison["weight"]
        return table.dropna(axis="columns", how="all")  # where evidence is not believed, nobody is ahead

    def belief(self) -> "pd.DataFrame":
        """One row per guide for the encoder's own q and one for the refined q, for people.

        Columns: the share of the observations whose weights cannot be believed; how many of the true latents
        of simulated data lie in the central 90% intervals; what the ELBO lacks of the log evidence (the gap),
        and the ELBO, in nats per held-out observation.
        """
        import pandas as pd

        parts = [("encoder", self.diagnostics, self.calibration)]
        if self.refined is not None and self.refined_calibration is not None:
            parts.append(("refined", self.refined, self.refined_calibration))
        everywhere = ["seed", "observation"]
        evidence = getattr(self, self.evidence)["log_evidence"].mean(everywhere)
        rows = []
        for guide in self.guides:
            for name, measured, calibration in parts:
                found = measured.sel(guide=guide)
                elbo, good = float(found["elbo"].mean()), believed(found)
                covered = calibration["coverage"].sel(guide=guide, level=0.9)
                rows.append(
                    {
                        "guide": guide,
                        "q": name,
                        "k̂ bad": "" if good is None else f"{1 - good.mean():.1%}",
                        "90% covers": f"{float(covered.mean()):.1%}",
                        "gap": float(evidence.sel(guide=guide)) - elbo,
                        "ELBO": elbo,
                    }
                )
        return pd.DataFrame(rows).set_index("guide")
