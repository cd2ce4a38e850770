"""The one verdict of a study: which guide, whether that is decided, what to believe, and what to run next."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from pyro_vae.posterior.belief import MATERIAL_SHARE, believed
from pyro_vae.report.findings import Findings
from pyro_vae.svi.display import epoch_losses

STILL_FALLING = 0.1
"""Nats per observation: a loss that fell by more within the last tenth of its epochs has not settled."""

NEGLIGIBLE = 0.5
"""Nats per observation: where every difference is known to be smaller, more seeds would decide nothing that
matters."""


@dataclass(frozen=True)
class Verdict:
    """What a study comes to, in words and numbers; ``None`` where it cannot be said."""

    guide: str | None
    """The one that is ahead, or the only one."""
    difference: float | None
    """To the next guide, in nats per observation, with its 95% interval ``low`` to ``high``."""
    low: float | None
    high: float | None
    decided: bool | None
    """Whether the interval excludes zero."""
    believable: float | None
    """Share of the held-out observations whose refined weights can be believed."""
    encoder_believable: float | None
    """The same of the encoders' own."""
    converged: bool | None
    """Whether the loss of every fit had settled at its end."""
    falling: float | None
    """By how many nats the worst fit's loss still fell within the last tenth of its epochs."""
    next_command: str | None
    """What to run next; ``None`` where nothing is wrong."""
    answer: str
    """The comparison in words."""
    sentences: tuple[str, ...]
    """The whole verdict, a sentence for each question."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def reach_verdict(findings: Findings, *, run: str, longer: str, more_seeds: str) -> Verdict:
    """Judge what was found.

    Parameters
    ----------
    findings
        Of a study.
    run
        Its folder.
    longer, more_seeds
        The commands that repeat it with twice the epochs, and with more seeds.
    """
    share = _share_believed(findings.refined)
    own = _share_believed(findings.diagnostics)
    falling = _falling(findings)
    sentences = [findings.answer, _on_belief(findings, share, own, run)]
    converged = None if falling is None else falling <= STILL_FALLING
    sentences.append(_on_training(findings, falling))
    table = findings.comparison
    undecided = table is not None and not bool(table["decided"].iloc[0])
    step: str | None = None
    if share is None:
        step = f"pyro-vae diagnose {run} --draws 1000"
    elif 1 - share > MATERIAL_SHARE:
        step = f"pyro-vae diagnose {run} --draws 10000"
    elif not converged:
        step = longer
    elif undecided and not _all_negligible(findings):
        step = more_seeds
    if undecided and step is None:
        sentences.append(
            f"Every difference is smaller than {NEGLIGIBLE:g} nats per observation: any of these guides will "
            "do."
        )
    ahead = table is None or ("diff" in table and not math.isnan(table["diff"].iloc[1]))
    second = None if table is None or not ahead else table.iloc[1]
    return Verdict(
        guide=str((findings.guides if table is None else table.index)[0]) if ahead else None,
        difference=None if second is None else float(-second["diff"]),
        low=None if second is None else float(-second["diff_high"]),
        high=None if second is None else float(-second["diff_low"]),
        decided=None if table is None else bool(table["decided"].iloc[0]),
        believable=share,
        encoder_believable=own,
        converged=converged,
        falling=falling,
        next_command=step,
        answer=findings.answer,
        sentences=tuple(sentences),
    )


def _share_believed(diagnostics: xr.Dataset | None) -> float | None:
    good = None if diagnostics is None else believed(diagnostics)
    return None if good is None else float(good.mean())


def _on_belief(findings: Findings, share: float | None, own: float | None, run: str) -> str:
    """Whose posteriors can be believed, refined and as the encoder has them, and of how many fits that is."""
    sizes = findings.diagnostics.sizes
    over = f"{sizes['observation']} held-out observations × {sizes['seed']} seeds of each guide"
    if "shared_draws" in findings.diagnostics.attrs:
        draws = int(findings.diagnostics.attrs["shared_draws"])
        over += f", given {draws} draws of the latents that all observations share"
    encoder = "" if own is None else f"the weights of {1 - own:.1%} are bad"
    if share is None:
        return f"Nothing was refined; of the encoders' own posteriors {encoder} ({over})."
    verb = "can" if 1 - share <= MATERIAL_SHARE else "cannot"
    refined = f"Refined posteriors {verb} be believed: the weights of {1 - share:.1%} are bad ({over})"
    if own is None or own >= share:
        return f"{refined}."
    return (
        f"{refined}; of the encoders' own {encoder}: use the refined ones, by fit.refined() as the guide or "
        f"`pyro-vae diagnose {run} --refined refined.nc` for their draws."
    )


def _falling(findings: Findings) -> float | None:
    """By how many nats the worst loss surely still fell within the last tenth of its epochs: from the first
    half of them to the second, less two standard errors of the noise from epoch to epoch."""
    falls = []
    for histories in findings.histories.values():
        for history in histories:
            losses = np.asarray(epoch_losses(history), dtype=np.float64)
            half = len(losses) // 20
            if half >= 2:
                before, last = losses[-2 * half : -half], losses[-half:]
                noise = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / half)
                falls.append(float(before.mean() - last.mean()) - 2 * noise)
    return max(0.0, *falls) if falls else None


def _on_training(findings: Findings, falling: float | None) -> str:
    """Whether the losses have settled, and what they are in training and held out."""
    histories = [history for by_seed in findings.histories.values() for history in by_seed]
    trained = float(np.mean([epoch_losses(history)[-1] for history in histories]))
    held_out = float(np.mean([history["validation"].values[-1] for history in histories]))
    reached = f"at the end it is {trained:.1f} nats per observation"
    if not math.isnan(held_out):
        reached += f" in training and {held_out:.1f} on held-out data"
    if falling is None:
        epochs = histories[0].sizes["epoch"]
        return f"Whether the fits have settled cannot be told from {epochs} epochs: {reached}."
    if falling <= STILL_FALLING:
        return f"The loss of every fit has settled: {reached}."
    return (
        f"Not every fit has settled: within the last tenth of its epochs a loss still fell by {falling:.2f} "
        f"nats; {reached}."
    )


def _all_negligible(findings: Findings) -> bool:
    """Whether every interval against the first guide lies within the margin."""
    table = findings.comparison
    assert table is not None
    rest = table.iloc[1:]
    return bool(((rest["diff_low"] > -NEGLIGIBLE) & (rest["diff_high"] < NEGLIGIBLE)).all())
