"""The figures of a run on disk, each with the words that go with it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Picture", "draw_figures"]

DPI = 150


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what a page says of it."""

    path: Path
    title: str
    caption: str

    @property
    def base64(self) -> str:
        """The file's bytes, for embedding."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


def draw_figures(
    folder: Path,
    histories: "Mapping[str, Sequence[xr.Dataset]]",
    diagnostics: "Mapping[str, Sequence[xr.Dataset]]",
    posteriors: "Mapping[str, xr.DataTree]",
    *,
    image_shape: tuple[int, ...] | None = None,
) -> list[Picture]:
    """Draw every figure that the data allow into a folder.

    Parameters
    ----------
    folder
        Where the PNG files go; it must exist.
    histories, diagnostics
        By guide, one data set per seed.
    posteriors
        By guide, an ArviZ tree of the same few observations.
    image_shape
        (height, width) if an observation is a grey image.
    """
    from pyro_vae.report import plots

    pictures: list[Picture] = []

    def add(name: str, figure: "Figure", title: str, caption: str) -> None:
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        pictures.append(Picture(path, title, caption))

    if len(diagnostics) > 1:
        add(
            "evidence",
            plots.plot_evidence(diagnostics),
            "Paired evidence differences",
            "Mean difference in log evidence of the same held-out observations: a point for each seed, their "
            "mean, and the 95% interval that holds for all pairs jointly.",
        )
    add(
        "training",
        plots.plot_training(histories),
        "Training",
        "Loss (negative ELBO) by epoch; a line for each seed.",
    )
    add(
        "khat",
        plots.plot_khat(diagnostics),
        "Can the importance weights be believed?",
        "k̂ of every held-out observation, seeds pooled, and the threshold above which it is too large.",
    )
    if image_shape is not None and len(image_shape) == 2:
        add(
            "predictive",
            plots.plot_predictive(posteriors, image_shape=(image_shape[0], image_shape[1])),
            "Posterior predictive images",
            "Held-out originals, and for each guide the mean of what its posterior predicts in their place; "
            "first seed.",
        )
    add(
        "forest",
        plots.plot_forest(posteriors),
        "Posteriors of a few held-out observations",
        "Medians, 50% and 94% intervals of each latent; first seed. Every guide trained its own decoder, so "
        "the same coordinate need not mean the same thing under two guides: compare widths.",
    )
    return pictures
