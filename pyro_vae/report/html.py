"""A run as one self-contained page: opens from disk, needs no network."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from pyro_vae.report.findings import Findings
from pyro_vae.report.pictures import Picture
from pyro_vae.report.readings import Reading
from pyro_vae.report.verdict import Verdict

TABLE_NOTE = (
    "Log evidence and the difference to the best guide in nats per held-out observation; the 95% interval is "
    "over seeds, paired, and holds for all pairs of guides jointly."
)
BELIEF_NOTE = (
    "Encoder: q(z|x) as the encoder puts it out; refined: after a few steps on the model's own density for "
    "each observation. ELBO and gap (what the ELBO lacks of the log evidence) in nats per held-out "
    "observation; k̂ bad: share of the observations whose importance weights cannot be relied on; 90% covers: "
    "how many of the true latents of simulated data lie in the central 90% intervals."
)


def render_page(
    *,
    title: str,
    findings: Findings,
    verdict: Verdict,
    readings: Sequence[Reading],
    pictures: Sequence[Picture],
    command: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
) -> str:
    """The page as HTML text; every word is escaped, every figure embedded with alternative text.

    Parameters
    ----------
    title, findings, verdict, readings, pictures
        What the page shows.
    command
        How to run it again.
    config, record
        What was asked, and what ``run.json`` says of device and versions.
    """
    from jinja2 import Environment, PackageLoader

    page = Environment(
        loader=PackageLoader("pyro_vae", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    summary, belief = findings.summary(), findings.belief()
    return page.render(
        title=title,
        verdict=verdict,
        columns=list(summary.columns),
        rows=[[_cell(str(name)), *map(_cell, row)] for name, row in summary.iterrows()],
        table_note=TABLE_NOTE,
        belief_columns=list(belief.columns),
        belief_rows=[[_cell(str(name)), *map(_cell, row)] for name, row in belief.iterrows()],
        belief_note=BELIEF_NOTE,
        readings=readings,
        sections=[(name, list(group)) for name, group in groupby(pictures, lambda p: p.section)],
        command=command,
        config={name: _told(value) for name, value in config.items() if value is not None},
        reading=_account(record.get("read") or {}),
        device=record.get("device", "a device that is not known"),
        versions=record.get("versions", {}),
        failures=list(findings.failures.values()),
        about=_about(findings, record),
    )


def _about(findings: Findings, record: Mapping[str, Any]) -> str:
    """When, how long, and on how much: the line below the title."""
    read, result = record.get("read") or {}, record.get("result") or {}
    guides, seeds = len(findings.guides), findings.diagnostics.sizes["seed"]
    parts = [f"{_counted(guides, 'guide')} × {_counted(seeds, 'seed')}"]
    if {"rows", "features", "train", "held_out"} <= read.keys():
        parts.append(
            f"{_counted(read['rows'], 'observation')} of {_counted(read['features'], 'number')}: "
            f"{read['train']:,} to train on, {read['held_out']:,} held out"
        )
    times = [_time(result.get(name)) for name in ("started", "finished")]
    if times[1] is not None:
        parts.append(f"finished {times[1]:%Y-%m-%d %H:%M} UTC")
        if times[0] is not None:
            minutes, seconds = divmod(round((times[1] - times[0]).total_seconds()), 60)
            parts[-1] += f", {minutes} min {seconds} s after it was begun"
    return " · ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (TypeError, ValueError):
        return None


def _cell(value: Any) -> tuple[str, str]:
    """As shown, and what it is sorted by."""
    if isinstance(value, float):
        return ("", "") if math.isnan(value) else (f"{value:.2f}".replace("-", "−"), repr(value))
    text = str(value)
    return text.replace("-", "−") if text[:1] == "-" else text, text.rstrip("%")


def _account(read: Mapping[str, Any]) -> dict[str, str]:
    """What was read of the data, as a table; of an older run nothing."""
    if not read:
        return {}
    left_out = read.get("left_out") or {}
    rows = {
        "rows": f"{read.get('rows')}, of which {read.get('rows_dropped') or 'none'} dropped",
        "trained on, held out": f"{read.get('train')}, {read.get('held_out')}",
        "columns": _told(read["columns"])
        if read.get("columns")
        else f"{read.get('features')}, without names",
        "left out": ", ".join(f"{name!r} ({why})" for name, why in left_out.items()),
        "look": "; ".join(read.get("notes") or ()),
        "likelihood": ": ".join(str(read[key]) for key in ("likelihood", "why") if read.get(key)),
        "shared latents": ", ".join(read.get("shared") or ()),
        "units": "standard deviations of the training rows" if read.get("standardized") else "",
    }
    return {name: value for name, value in rows.items() if value}


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
