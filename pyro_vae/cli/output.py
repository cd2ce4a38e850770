"""What the commands print: tables and sentences for people, JSON for machines. Nothing else prints."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from pyro_vae.study import Study

__all__ = ["show_diagnosis", "show_path", "show_scales", "show_study"]


def show_study(study: "Study", *, as_json: bool) -> None:
    """The verdict, the tables behind it, and where everything is."""
    if as_json:
        _print_json(_as_data(study))
        return
    console = _console()
    _print_verdict(console, study)
    _print_summary(console, study)
    _print_belief(console, study)
    for failure in study.failures.values():
        _say(console, f"Failed: {failure}")
    _say(console, f"The page is {study.folder / 'report.html'}")


def show_diagnosis(study: "Study", *, as_json: bool) -> None:
    """The verdict, the tables behind it, and every measure in words."""
    if as_json:
        _print_json(_as_data(study))
        return
    console = _console()
    _print_verdict(console, study)
    _print_summary(console, study)
    _print_belief(console, study)
    _print_readings(console, study)


def show_path(path: Path, *, as_json: bool) -> None:
    """Where something was written."""
    if as_json:
        _print_json({"report": str(path)})
    else:
        _console().print(f"The report is in {path}", highlight=False, soft_wrap=True)


def show_scales(*, as_json: bool) -> None:
    """The table of scale maps."""
    from rich.table import Table

    from pyro_vae.guides import scales as maps

    rows = maps.table()
    if as_json:
        _print_json(rows)
        return
    headings = {
        "name": "name",
        "sigma": "σ",
        "sigma_at_0": "σ(0)",
        "slope_at_0": "slope(0)",
        "remark": "remark",
    }
    table = Table(box=None, pad_edge=False)
    for key, heading in headings.items():
        table.add_column(heading, no_wrap=key == "name", overflow="fold")
    for row in rows:
        table.add_row(*(row[key] for key in headings))
    console = _console()
    console.print(table)
    console.print(
        "\nraw: what the encoder puts out; slope: d log σ / d raw, the speed of σ under an optimizer"
    )


def _say(console: "Console", sentence: str) -> None:
    """One sentence, as it is: names in it are no markup, and a path stays in one piece."""
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _print_verdict(console: "Console", study: "Study") -> None:
    for sentence in study.verdict.sentences:
        console.print(sentence, highlight=False, markup=False)
    if study.verdict.next_command:
        _say(console, f"Run next: {study.verdict.next_command}")
    console.print()


def _print_summary(console: "Console", study: "Study") -> None:
    seeds = study.config.seeds
    title = f"{study.config.data}, held-out observations, {seeds} seed{'s' * (seeds > 1)}"
    _print_table(console, study.summary(), title)
    difference = " and difference to the best" if study.comparison is not None else ""
    console.print(f"evidence (log p(x)){difference} in nats per observation\n", highlight=False)


def _print_belief(console: "Console", study: "Study") -> None:
    _print_table(console, study.belief(), "Can the posteriors be believed?")
    console.print("ELBO, and what it lacks of the evidence, in nats per observation\n", highlight=False)


def _print_table(console: "Console", content: "pd.DataFrame", title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(str(content.index.name), no_wrap=True)
    for column in content.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in content.iterrows():
        table.add_row(Text(str(name)), *(_shown(value) for value in row))
    console.print(table)


def _print_readings(console: "Console", study: "Study") -> None:
    from rich.table import Table

    from pyro_vae.report.readings import read_findings_aloud

    table = Table.grid(padding=(0, 2, 0, 0))
    for reading in read_findings_aloud(study.findings):
        table.add_row(reading.measure, reading.guide, reading.sentence)
    console.print("The encoders, measure by measure", highlight=False)
    console.print(table, highlight=False)
    console.print()


def _as_data(study: "Study") -> dict[str, Any]:
    """The study as JSON can hold it: what is not finite becomes null."""
    from pyro_vae.report.readings import read_findings_aloud

    return {
        "answer": study.answer,
        "verdict": study.verdict.as_dict(),
        "config": dataclasses.asdict(study.config),
        "folder": str(study.folder),
        "summary": _records(study.summary()),
        "belief": _belief_records(study.belief()),
        "comparison": {} if study.comparison is None else _records(study.comparison),
        "readings": [dataclasses.asdict(reading) for reading in read_findings_aloud(study.findings)],
        "failures": study.failures,
    }


def _records(table: "pd.DataFrame") -> Any:
    return json.loads(table.to_json(orient="index"))


def _belief_records(table: "pd.DataFrame") -> Any:
    return json.loads(table.reset_index().to_json(orient="records"))


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _console() -> "Console":
    """Standard output; where it is no terminal, wide enough for every table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)
