"""9. Guides, not only maps: mean field, full covariance and a flow, each under three maps, and refined.

The digits under the settings of the main job. Evidence and coverage are asked twice: of the encoder as it is,
and of the Gaussians that refinement makes of it. A guide's gap is what its ELBO lacks of the refined evidence
of its own model; the seconds are the processor's, of one fit and of one look at 359 held-out images.
"""

import time
from dataclasses import replace
from functools import partial

from matplotlib.figure import Figure
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae
from evidence.experiment import Effort, Job, Results, Row, float32
from evidence.experiments.real_data import PROTOCOLS, parts
from pyro_vae.plots.style import COLORS, WIDTH, bare
from pyro_vae.study.pairs import make_pair

SECONDS = 150.0
FAMILIES = {"mean field": "normal", "full covariance": "multivariate", "flow": "flow"}
"""And their names in the command."""
MAPS = ("logvar", "logstd", "softplus")
STEPS = {"tiny": 4, "quick": 300, "full": 2_300}
SEEDS = {"tiny": 2, "quick": 2, "full": 3}
DRAWS, SIMULATIONS, LEVEL = 300, 500, 0.9


def jobs(effort: Effort) -> list[Job]:
    return [
        partial(fit_and_measure, family, scale, seed, effort.name)
        for seed in range(SEEDS[effort.name])
        for family in FAMILIES
        for scale in MAPS
    ]


def fit_and_measure(family: str, scale: str, seed: int, effort: str) -> list[Row]:
    """One fit."""
    steps, settings = STEPS[effort], PROTOCOLS["digits"].config
    tiny = effort == "tiny"
    with float32():
        train, held_out = parts("digits", None)
        like = replace(settings, guides=(FAMILIES[family],), scales=(scale,))
        model, guide = make_pair(like, train, scale, seed)
        started = time.process_time()
        fitted = pyro_vae.fit(
            model,
            guide,
            train.x,
            steps=steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
            seed=seed,
            progress=False,
        )
        fit_seconds = time.process_time() - started
        x = held_out.x[:20] if tiny else held_out.x
        rows = {}
        for who, options in (("encoder", {}), ("refined", {"refined": True})):
            started = time.process_time()
            found = pyro_vae.diagnose(model, guide, x, draws=100 if tiny else DRAWS, seed=seed, **options)
            asked = fitted.refined(steps=50) if options else guide
            rows[who] = {
                "seconds": time.process_time() - started,
                "elbo": float(found["elbo"].mean()),
                "log_evidence": float(found["log_evidence"].mean()),
                "khat_bad": float((found["khat"] > found.attrs["khat_threshold"]).mean()),
            }
            calibration = pyro_vae.calibrate(
                model, asked, n=20 if tiny else SIMULATIONS, data=x, draws=100 if tiny else 500, seed=seed
            )
            rows[who]["coverage"] = float(calibration["coverage"].sel(level=LEVEL, method="nearest").mean())
    evidence = rows["refined"]["log_evidence"]
    about: Row = {
        "family": family,
        "map": scale,
        "seed": seed,
        "fit_seconds": fit_seconds,
        "engine": fitted.engine,
    }
    return [about | {"who": who} | row | {"gap": evidence - row["elbo"]} for who, row in rows.items()]


def draw(results: Results) -> Figure:
    table = results["guides"]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    labels = [f"{family}, {scale}" for family in FAMILIES for scale in MAPS]
    for axes, (column, title) in zip(
        panels,
        (
            ("gap", "gap to the evidence (nats)"),
            ("khat_bad", "share of k̂ bad"),
            ("coverage", "90% intervals cover"),
        ),
        strict=True,
    ):
        for who, color, marker in (("encoder", COLORS[1], "o"), ("refined", COLORS[0], "s")):
            mean = table[table["who"] == who].groupby(["family", "map"])[column].mean()
            values = [mean[family, scale] for family in FAMILIES for scale in MAPS]
            axes.plot(values, range(len(labels)), marker, color=color, ms=5, label=who)
        axes.set_xlabel(title, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(labelsize=8)
        bare(axes)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    panels[2].axvline(LEVEL, color="#999999", lw=0.7)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncol=2, frameon=False)
    return figure
