"""The main job: one data set, several guides, several seeds; which guide explains held-out data better?

Every guide gets the same architecture, initial weights, initial σ, batches and noise; only the map from the
encoder's output to σ differs. Each trains a model of its own, so what is compared is the evidence of held-out
observations.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyro_vae import data as data_sets
from pyro_vae.guides import AmortizedNormal, scales
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.posterior import answer, compare, diagnose, from_pyro_svi
from pyro_vae.report.html import render_page
from pyro_vae.report.pictures import draw_figures
from pyro_vae.run_folder import RunFolder, claim
from pyro_vae.svi import Fit, NonFiniteError, fit
from pyro_vae.svi.devices import resolve_device
from pyro_vae.svi.progress import Show, progress_bar

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Study", "StudyConfig", "run_study"]

logger = logging.getLogger(__name__)

SHOWN_OBSERVATIONS = 8
"""Held-out observations whose posterior draws are kept and drawn."""
KEPT_DRAWS = 500


@dataclass(frozen=True)
class StudyConfig:
    """What a study is asked to do; the defaults are those of ``pyro-vae compare digits``.

    Parameters
    ----------
    data
        A name that :func:`pyro_vae.data.load` knows, or a path.
    scales
        Names of scale maps, one guide each.
    seeds
        How often every guide is fitted: seeds 0, 1, …
    epochs, batch_size, lr
        Of each fit.
    latent_dim, hidden
        Size of z; sizes of the encoder's hidden layers (the decoder's are the same, backwards).
    init_scale
        σ that every guide starts at.
    held_out
        Share of the observations that no fit sees.
    draws
        Importance draws for each held-out observation.
    device
        As in :func:`~pyro_vae.svi.fitting.fit`.
    root
        Folder of a data set's files, where it needs one.
    likelihood
        Name of a likelihood in place of the one that the data suggest.

    Raises
    ------
    ValueError
        If a value cannot be used; the message names it.

    Examples
    --------
    >>> StudyConfig(seeds=5).scales
    ('logvar', 'logstd', 'softplus')
    """

    data: str = "digits"
    scales: tuple[str, ...] = ("logvar", "logstd", "softplus")
    seeds: int = 3
    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    latent_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    init_scale: float = 1.0
    held_out: float = 0.2
    draws: int = 1000
    device: str = "auto"
    root: str | None = None
    likelihood: str | None = None

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError(f"scales is empty; name at least one of {', '.join(scales.names())}")
        for name in self.scales:
            scales.get(name)
        repeated = sorted({name for name in self.scales if self.scales.count(name) > 1})
        if repeated:
            raise ValueError(
                f"scales names {repeated[0]!r} twice; a guide is compared with others, not with itself"
            )
        for name, least in (
            ("seeds", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("latent_dim", 1),
            ("draws", 100),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; give an integer of at least {least}")
        if not self.hidden or any(not isinstance(size, int) or size < 1 for size in self.hidden):
            raise ValueError(
                f"hidden is {self.hidden!r}; give the sizes of the hidden layers, such as (128, 128)"
            )
        for name in ("lr", "init_scale"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; give a positive number")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out!r}; give a share between 0 and 1, such as 0.2")
        resolve_device(self.device)


@dataclass(frozen=True)
class Study:
    """What a study found."""

    config: StudyConfig
    folder: Path
    histories: Mapping[str, "list[xr.Dataset]"]
    """By guide, the training history of each seed."""
    diagnostics: "xr.Dataset"
    """Evidence, ELBO, k̂ and more over (guide, seed, observation), in nats."""
    posteriors: Mapping[str, "xr.DataTree"]
    """By guide, the first seed's posterior draws for some held-out observations, for ArviZ."""
    comparison: "pd.DataFrame | None"
    """From :func:`pyro_vae.compare`; None if fewer than two guides were fitted."""
    answer: str
    failures: Mapping[str, str] = field(default_factory=dict)
    """Guides that could not be fitted, and why; they are in nothing else."""

    def summary(self) -> "pd.DataFrame":
        """One row per guide, best first, for people: means over seeds and held-out observations.

        Columns: log evidence, ELBO and KL in nats per observation; the share of observations whose k̂ is
        above the threshold; and, where guides were compared, the paired difference to the best one, its 95%
        interval, whether that decides, and the stacking weight.
        """
        import pandas as pd

        means = self.diagnostics[["log_evidence", "elbo", "kl"]].mean(["seed", "observation"])
        threshold = self.diagnostics.attrs["khat_threshold"]
        table = pd.DataFrame(
            {
                "evidence": means["log_evidence"].values,
                "ELBO": means["elbo"].values,
                "KL": means["kl"].values,
                f"k̂>{threshold:.2f}": _share_above(self.diagnostics["khat"], threshold),
            },
            index=pd.Index(self.diagnostics["guide"].values, name="guide"),
        )
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
        return table

    def __repr__(self) -> str:
        guides = ", ".join(map(str, self.diagnostics["guide"].values))
        about = f"{self.config.data}; {guides}; {self.config.seeds} seeds; {self.folder}"
        return f"Study({about}): {self.answer}"


def run_study(
    config: StudyConfig | None = None, *, out: str | Path | None = None, progress: bool = True
) -> Study:
    """Fit every guide with every seed, diagnose each on held-out data, compare, and write it all down.

    Parameters
    ----------
    config
        What to do; by default the comparison of three guides on scikit-learn's handwritten digits.
    out
        Folder of the run (see :mod:`pyro_vae.run_folder`), by default ``runs/<data>``. It must be new, empty,
        or hold an earlier run, which is replaced.
    progress
        A bar on a terminal, lines of the log elsewhere.

    Returns
    -------
    Study

    Raises
    ------
    ValueError
        If the data cannot be loaded or the folder holds something else.
    NonFiniteError
        If no guide could be fitted. As long as one could, the others are reported in ``Study.failures``.

    References
    ----------
    Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders (evidence of held-out
    observations). Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work? (k̂); Using Stacking to
    Average Bayesian Predictive Distributions (weights).

    Examples
    --------
    ``run_study(StudyConfig("digits", scales=("logvar", "softplus"), seeds=5), out="runs/two")``
    """
    config = StudyConfig() if config is None else config
    everything = data_sets.load(config.data, root=config.root, likelihood=config.likelihood)
    train, held_out = _split(everything, config.held_out)
    folder = claim(Path("runs") / everything.name if out is None else out)
    folder.write_record(dataclasses.asdict(config), str(resolve_device(config.device)), {"status": "running"})

    fits, diagnosed, failures = _fit_all(config, train, held_out, folder, progress)
    if not fits:
        raise NonFiniteError(f"no guide could be fitted: {next(iter(failures.values()))}")
    diagnostics = _combine(diagnosed)
    diagnostics.to_netcdf(folder.diagnostics, engine="h5netcdf")
    shown = held_out.x[:SHOWN_OBSERVATIONS]
    posteriors = {
        name: from_pyro_svi(by_seed[0].model, by_seed[0].guide, shown, draws=KEPT_DRAWS, name=name)
        for name, by_seed in fits.items()
    }
    for name, tree in posteriors.items():
        tree.to_netcdf(folder.posterior(name), engine="h5netcdf")
    comparison = compare(diagnosed) if len(fits) > 1 else None
    if comparison is not None:
        comparison.to_csv(folder.comparison)
    study = Study(
        config,
        folder.root,
        {name: [fitted.history for fitted in by_seed] for name, by_seed in fits.items()},
        diagnostics,
        posteriors,
        comparison,
        _answer(comparison, diagnostics, failures),
        failures,
    )
    pictures = draw_figures(
        folder.root / "figures", study.histories, diagnosed, posteriors, image_shape=held_out.image_shape
    )
    page = render_page(
        title=f"pyro-vae: {config.data}",
        answer=study.answer,
        summary=study.summary(),
        pictures=pictures,
        config=dataclasses.asdict(config),
        failures=failures.values(),
    )
    folder.report.write_text(page, encoding="utf-8")
    folder.write_record(
        dataclasses.asdict(config),
        str(resolve_device(config.device)),
        {"status": "done", "answer": study.answer},
    )
    return study


def _split(everything: data_sets.DataSet, share: float) -> tuple[data_sets.DataSet, data_sets.DataSet]:
    """Training and held-out data; real-valued ones in units of the training data's standard deviations."""
    train, held_out = data_sets.split(everything, share, seed=0)
    if everything.likelihood in ("normal", "student-t"):
        return data_sets.standardize(train), data_sets.standardize(held_out, like=train)
    return train, held_out


def make_pair(
    config: StudyConfig, data: data_sets.DataSet, scale: str, seed: int
) -> tuple[VAE, AmortizedNormal]:
    """A fresh model and guide; for one seed the initial weights are the same under every scale map."""
    features = data.x.shape[1]
    likelihood = likelihoods.get(data.likelihood, **data.likelihood_args)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = MLPEncoder(features, config.hidden)
        decoder = MLPDecoder(config.latent_dim, config.hidden[::-1], features * likelihood.outputs)
        model = VAE(decoder, config.latent_dim, likelihood)
        model.init_output(torch.as_tensor(data.x))
        guide = AmortizedNormal(model, encoder, scale=scale, init_scale=config.init_scale)
    return model, guide


Fits = dict[str, list[Fit]]


def _fit_all(
    config: StudyConfig,
    train: data_sets.DataSet,
    held_out: data_sets.DataSet,
    folder: RunFolder,
    progress: bool,
) -> "tuple[Fits, dict[str, list[xr.Dataset]], dict[str, str]]":
    """Seed by seed, so that guides are at every moment equally far."""
    fits: Fits = {name: [] for name in config.scales}
    diagnosed: dict[str, list[xr.Dataset]] = {name: [] for name in config.scales}
    failures: dict[str, str] = {}
    with progress_bar(config.seeds * len(config.scales) * config.epochs, "epochs", enabled=progress) as show:
        for seed in range(config.seeds):
            for i, name in enumerate(config.scales):
                done = (seed * len(config.scales) + i) * config.epochs
                if name in failures:
                    continue
                try:
                    fitted = _fit_one(config, train, name, seed, show, done)
                except NonFiniteError as error:
                    failures[name] = f"{name}, seed {seed}: {error}"
                    logger.warning("the guide %s is left out: %s", name, error)
                    continue
                fitted.save(folder.fit(name, seed))
                fits[name].append(fitted)
                diagnosed[name].append(
                    diagnose(fitted.model, fitted.guide, held_out.x, draws=config.draws, seed=seed)
                )
    complete = [name for name in config.scales if name not in failures]
    return {n: fits[n] for n in complete}, {n: diagnosed[n] for n in complete}, failures


def _fit_one(
    config: StudyConfig, train: data_sets.DataSet, scale: str, seed: int, show: Show, done: int
) -> Fit:
    model, guide = make_pair(config, train, scale, seed)
    return fit(
        model,
        guide,
        train.x,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        device=config.device,
        progress=False,
        callbacks=[lambda r: show(done + r.epoch + 1, f"{scale}, seed {seed}: loss {r.loss:.4g} nats")],
    )


def _combine(diagnosed: "Mapping[str, list[xr.Dataset]]") -> "xr.Dataset":
    """One data set over (guide, seed, observation)."""
    import xarray as xr

    def seeds(fits: "list[xr.Dataset]") -> "xr.Dataset":
        return xr.concat(fits, "seed", combine_attrs="drop_conflicts").assign_coords(
            seed=np.arange(len(fits))
        )

    combined = xr.concat(
        [seeds(fits) for fits in diagnosed.values()], "guide", combine_attrs="drop_conflicts"
    )
    return combined.assign_coords(guide=list(diagnosed))


def _share_above(khat: "xr.DataArray", threshold: float) -> list[str]:
    share = (khat > threshold).mean(["seed", "observation"])
    return [f"{float(value):.0%}" for value in share]


def _answer(comparison: "pd.DataFrame | None", diagnostics: "xr.Dataset", failures: Mapping[str, str]) -> str:
    if comparison is None:
        mean = float(diagnostics["log_evidence"].mean())
        name = str(diagnostics["guide"].values[0])
        reached = f"{name} reaches a log evidence of {mean:.2f} nats per observation"
        sentence = f"{reached}; there is no other guide to compare it with."
    else:
        sentence = answer(comparison)
    if failures:
        sentence += f" Left out, because a fit failed: {', '.join(failures)}."
    return sentence
