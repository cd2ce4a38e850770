"""Draws docs/images/gallery/: one picture for each public figure, of the main job's run on the digits.

python docs/figures/gallery.py [FOLDER of a finished run]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from pyro_vae import Study, StudyConfig, plots, run_study

PICTURES = Path(__file__).parent.parent / "images" / "gallery"
DPI = 100
SHOWN = ("logvar", "softplus")
IMAGE = (8, 8)


def figures(study: Study) -> dict[str, Callable[[], Figure]]:
    """How each is drawn from what a study found, by the name of its function."""
    found = study.findings

    def of(measure: str) -> dict:
        return {name: given for name, given in found.by_guide(measure).items() if name in SHOWN}

    def first_seed(measure: str) -> dict:
        return {name: given.isel(seed=0) for name, given in of(measure).items()}

    def both(own: str, refined: str) -> dict:
        return of(own) | {f"{name}, refined": given for name, given in of(refined).items()}

    trees = {name: found.posteriors[name] for name in SHOWN}
    histories = {name: found.histories[name] for name in SHOWN}
    return {
        "plot_evidence": lambda: plots.plot_evidence(found.by_guide("refined")),
        "plot_khat": lambda: plots.plot_khat(both("diagnostics", "refined")),
        "plot_calibration": lambda: plots.plot_calibration(both("calibration", "refined_calibration")),
        "plot_gaps": lambda: plots.plot_gaps(of("gaps")),
        "plot_reference": lambda: plots.plot_reference(trees),
        "plot_units": lambda: plots.plot_units(of("units")),
        "plot_training": lambda: plots.plot_training(histories),
        "plot_scale_history": lambda: plots.plot_scale_history(histories),
        "plot_scales": lambda: plots.plot_scales(of("latents")),
        "plot_forest": lambda: plots.plot_forest(trees),
        "plot_latents": lambda: plots.plot_latents(first_seed("latents"), first_seed("units")),
        "plot_predictive": lambda: plots.plot_predictive(trees, image_shape=IMAGE),
        "plot_samples": lambda: plots.plot_samples(trees, IMAGE),
        "plot_traversal": lambda: plots.plot_traversal(trees, first_seed("units"), IMAGE),
    }


def draw(study: Study, folder: Path) -> list[Path]:
    """Every picture into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, figure in figures(study).items():
        path = folder / f"{name}.png"
        figure().savefig(path, dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
        drawn.append(path)
    return drawn


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run = (
            Study.load(sys.argv[1]) if len(sys.argv) > 1 else run_study(StudyConfig(), out=f"{folder}/digits")
        )
        draw(run, PICTURES)
