"""The figures of a run on disk, each with the words that go with it."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyro_vae.report.findings import Findings
from pyro_vae.storage.atomic import write_whole

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

DPI = 200

Kind = Literal["chart", "image"]


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what a page says of it."""

    path: Path
    section: str
    title: str
    caption: str
    alt: str
    """What is to be seen, for those who cannot see it."""
    size: tuple[int, int]
    """Width and height in pixels."""
    kind: Kind = "chart"
    """Colours of an ``image`` mean brightness, and must not be inverted on a dark page."""

    @property
    def base64(self) -> str:
        """The file's bytes, for embedding."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class _Gallery:
    """Collects the figures of a folder."""

    folder: Path
    guides: str
    pictures: list[Picture]

    def add(
        self, section: str, name: str, figure: "Figure", title: str, caption: str, kind: Kind = "chart"
    ) -> None:
        path, drawn = self.folder / f"{name}.png", io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
        write_whole(path, drawn.getbuffer())
        width, height = (round(inches * DPI) for inches in figure.get_size_inches())
        alt = f"Figure: {title.lower()}, for {self.guides}. {caption}"
        self.pictures.append(Picture(path, section, title, caption, alt, (width, height), kind))


def draw_figures(folder: Path, findings: Findings) -> list[Picture]:
    """Draw every figure that the findings allow into a folder, which must exist; old ones are replaced."""
    gallery = _Gallery(folder, ", ".join(findings.guides), [])
    parts: list[Callable[[_Gallery, Findings], None]] = [_comparison, _belief, _scale, _latents]
    for part in parts:
        part(gallery, findings)
    return gallery.pictures


def _comparison(gallery: _Gallery, findings: Findings) -> None:
    from pyro_vae import plots

    several = findings.comparison is not None
    section = "Which guide explains the data better?" if several else "How did the fit go?"
    if findings.comparison is not None:
        gallery.add(
            section,
            "evidence",
            plots.plot_evidence(findings.by_guide(findings.evidence)),
            "Paired evidence differences",
            "Mean difference in log evidence of the same held-out observations: a point for each seed, their "
            "mean, and the 95% interval that holds for all pairs jointly.",
        )
    gallery.add(
        section,
        "training",
        plots.plot_training(findings.histories),
        "Training",
        "Loss (negative ELBO, nats per observation) by epoch; a line for each seed.",
    )


def _belief(gallery: _Gallery, findings: Findings) -> None:
    from pyro_vae import plots

    section = "Can the posteriors be believed?"
    gallery.add(
        section,
        "khat",
        plots.plot_khat(_by_q(findings, "diagnostics", "refined")),
        "Pareto k̂",
        "k̂ of every held-out observation, seeds pooled, of the encoder's q and of the refined one, and the "
        "threshold above which importance weights are not reliable. k̂ grows with the latent dimension.",
    )
    gallery.add(
        section,
        "calibration",
        plots.plot_calibration(_by_q(findings, "calibration", "refined_calibration")),
        "Calibration",
        "Latents and data are drawn from each model, and its guide is asked where the latents lie: how many "
        "fall inside its central intervals, and at which of its quantiles. Right is the dashed line.",
    )
    if findings.gaps is not None:
        gallery.add(
            section,
            "gaps",
            plots.plot_gaps(findings.by_guide("gaps")),
            "Where the guides lose",
            "log p(x) − ELBO, split at the best q of the family for each single observation; first seed.",
        )
    trees = findings.posteriors
    if all("repair" in tree.children for tree in trees.values()):
        gallery.add(
            section,
            "reference",
            plots.plot_reference(trees),
            "Latents against a reference",
            "Mean and 90% interval of each latent of a few held-out observations: as the guide has it "
            "(colour), and as draws that passed their own diagnosis have it (black); first seed. The titles "
            "say where those come from: resample, weighted draws of a proposal fitted to the observation; "
            "local, the same from its mode; guide, the guide itself, which needed no repair.",
        )
    units = {name: given for name, given in findings.by_guide("units").items() if given["kl"].notnull().all()}
    if units:  # the KL of a flow has no closed form by dimension
        gallery.add(
            section,
            "units",
            plots.plot_units(units),
            "What each latent dimension carries",
            "Mean KL of q from the prior by latent dimension, the largest first; a line for each seed.",
        )


def _by_q(findings: Findings, own: str, refined: str) -> "dict[str, xr.Dataset]":
    """A measure of each guide, as the encoder has it and refined."""
    found = findings.by_guide(own)
    if getattr(findings, refined) is None:
        return found
    both: dict[str, xr.Dataset] = {}
    for name, better in findings.by_guide(refined).items():
        both |= {name: found[name], f"{name}, refined": better}
    return both


def _scale(gallery: _Gallery, findings: Findings) -> None:
    from pyro_vae import plots

    section = "What does σ do?"
    if all("scale" in history for fits in findings.histories.values() for history in fits):
        gallery.add(
            section,
            "scale-training",
            plots.plot_scale_history(findings.histories),
            "σ over training",
            "σ of each latent dimension by epoch, geometric mean over the same observations; a line for each "
            "dimension and seed. Where it stays at 1, the dimension carries nothing.",
        )
    gallery.add(
        section,
        "scale-observations",
        plots.plot_scales(findings.by_guide("latents")),
        "σ over observations",
        "Distribution of σ over held-out observations and latent dimensions, seeds pooled.",
    )


def _latents(gallery: _Gallery, findings: Findings) -> None:
    from pyro_vae import plots

    section = "What do model and guide show?"
    trees, units = findings.posteriors, _first_seed(findings, "units")
    if findings.image_shape is not None and len(findings.image_shape) == 2:
        shape = (findings.image_shape[0], findings.image_shape[1])
        gallery.add(
            section,
            "predictive",
            plots.plot_predictive(trees, image_shape=shape),
            "Originals and posterior predictive",
            "Held-out originals, and for each guide the mean of what its posterior predicts in their place; "
            "first seed.",
            "image",
        )
        gallery.add(
            section,
            "samples",
            plots.plot_samples(trees, shape),
            "Samples",
            "Images drawn from each guide's model: z from the prior, then x given z; first seed.",
            "image",
        )
        if all("traversal" in tree.children for tree in trees.values()):
            gallery.add(
                section,
                "traversal",
                plots.plot_traversal(trees, units, shape),
                "Latent traversal",
                "Mean images on walks from the origin along each latent axis, those with the largest KL "
                "first; first seed.",
                "image",
            )
    if findings.latents.sizes["latent"] > 1:
        gallery.add(
            section,
            "latents",
            plots.plot_latents(_first_seed(findings, "latents"), units),
            "Held-out observations in latent space",
            "Posterior means in the two latent dimensions with the largest KL; first seed. Every guide "
            "trained its own decoder, so axes of two panels are not the same.",
        )
    gallery.add(
        section,
        "forest",
        plots.plot_forest(trees),
        "Posteriors of two held-out observations",
        "Medians, 50% and 94% intervals of each latent; first seed. Every guide trained its own decoder, so "
        "the same coordinate need not mean the same thing under two guides: compare widths.",
    )


def _first_seed(findings: Findings, measure: str) -> "dict[str, xr.Dataset]":
    return {name: given.isel(seed=0) for name, given in findings.by_guide(measure).items()}
