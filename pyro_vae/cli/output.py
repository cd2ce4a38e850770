"""What the commands print: tables and sentences for people, JSON for machines. Nothing else prints."""

import dataclasses
import errno
import io
import json
import math
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.arguments import printable
from pyro_vae.version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from pyro_vae.study import Study

SPELLED = {
    "k̂": "khat",
    "σ": "sigma",
    "β": "beta",
    "√": "sqrt",
    "²": "^2",
    "−": "-",
    "·": "*",
    "≥": ">=",
    "×": "x",
    "…": "...",
}
"""Symbols of the field, for terminals that do not have them."""


def show_study(study: "Study", *, as_json: bool) -> None:
    """The verdict, the tables behind it, and where the page is."""
    if as_json:
        _print_json(_as_data(study))
        return
    with _telling() as console:
        _print_verdict(console, study)
        _print_summary(console, study)
        _print_belief(console, study)
        for failure in study.failures.values():
            console.print(printable(f"Failed: {failure}"), soft_wrap=True)
        opened = shlex.join([*_opener(), str(study.folder / "report.html")])
        console.print(printable(f"Open the page: {opened}"), soft_wrap=True)


def show_diagnosis(study: "Study", *, as_json: bool) -> None:
    """The verdict, the tables behind it, and every measure of the encoders in words."""
    if as_json:
        _print_json(_as_data(study))
        return
    with _telling() as console:
        _print_verdict(console, study)
        _print_summary(console, study)
        _print_belief(console, study)
        _print_readings(console, study)


def show_refined(path: Path, *, as_json: bool) -> None:
    """Where the draws of refined posteriors were written, and how they are read."""
    if as_json:
        _print_json({"refined": str(path)})
    else:
        with _telling() as console:
            told = f"Draws of the refined posteriors are in {path}: xarray.open_datatree({str(path)!r})"
            console.print(printable(told), soft_wrap=True)


def show_path(path: Path, *, as_json: bool) -> None:
    """Where something was written."""
    if as_json:
        _print_json({"report": str(path)})
    else:
        with _telling() as console:
            opened = shlex.join([*_opener(), str(path)])
            console.print(printable(f"The report is in {path}"), soft_wrap=True)
            console.print(printable(f"Open the page: {opened}"), soft_wrap=True)


def show_version() -> None:
    """Name and version."""
    _write(f"pyro-vae {__version__}\n")


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
    with _telling() as console:
        console.print(table)
        console.print(
            "\nraw: what the encoder puts out; slope: d log σ / d raw, the speed of σ under an optimizer"
        )


def _print_verdict(console: "Console", study: "Study") -> None:
    for sentence in study.verdict.sentences:
        console.print(printable(sentence))
    if study.verdict.next_command:
        console.print("Run next:")
        console.print(_folded(printable(study.verdict.next_command), console.width), soft_wrap=True)
    console.print()


def _folded(command: str, width: int) -> str:
    """A command that can be copied, on lines that end between its words.

    >>> print(_folded("pyro-vae compare digits --epochs 200 --out runs/digits-200-epochs", 48))
      pyro-vae compare digits --epochs 200 --out \\
        runs/digits-200-epochs
    """
    wrapped = textwrap.wrap(
        command,
        width - 2,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(wrapped)


def _opener() -> list[str]:
    """The command that opens a page in a browser, on this system."""
    openers = {"darwin": ["open"], "win32": ["start"]}
    usual = openers.get(sys.platform, ["xdg-open"])
    return usual if shutil.which(usual[0]) else ["python3", "-m", "webbrowser", "-t"]


def _print_summary(console: "Console", study: "Study") -> None:
    seeds = study.config.seeds
    title = f"{printable(study.config.data)}, held-out observations, {seeds} seed{'s' * (seeds > 1)}"
    _print_table(console, study.summary(), title)
    difference = " and difference to the best" if study.comparison is not None else ""
    console.print(f"evidence (log p(x)){difference} in nats per observation\n")


def _print_belief(console: "Console", study: "Study") -> None:
    _print_table(console, study.belief(), "Can the posteriors be believed?")
    console.print("gap: what the ELBO lacks of the evidence; both in nats per observation\n")


def _print_table(console: "Console", content: "pd.DataFrame", title: str) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(str(content.index.name), no_wrap=True)
    for column in content.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in content.iterrows():
        table.add_row(str(name), *(_shown(value) for value in row))
    console.print(table)


def _print_readings(console: "Console", study: "Study") -> None:
    from rich.table import Table

    from pyro_vae.report.readings import read_findings_aloud, read_together

    table = Table.grid(padding=(0, 2, 0, 0))
    for reading in read_together(read_findings_aloud(study.findings)):
        table.add_row(reading.measure, reading.guide, reading.sentence)
    console.print("The encoders, measure by measure")
    console.print(table)
    console.print()


def _as_data(study: "Study") -> dict[str, Any]:
    """The study as JSON can hold it: what is not finite becomes null."""
    from pyro_vae.report.readings import read_findings_aloud

    return {
        "verdict": study.verdict.as_dict(),
        "answer": study.answer,
        "config": dataclasses.asdict(study.config),
        "folder": str(study.folder),
        "summary": _records(study.summary()),
        "belief": json.loads(study.belief().reset_index().to_json(orient="records")),
        "comparison": {} if study.comparison is None else _records(study.comparison),
        "readings": [dataclasses.asdict(reading) for reading in read_findings_aloud(study.findings)],
        "failures": study.failures,
    }


def _records(table: "pd.DataFrame") -> Any:
    return json.loads(table.to_json(orient="index"))


def _print_json(data: Any) -> None:
    _write(json.dumps(data, indent=2) + "\n")


@contextmanager
def _telling() -> "Iterator[Console]":
    """What is printed on the console in this block goes to standard output, as it is: nothing in it is taken
    for markup. Where that is no terminal it is wide enough for every table."""
    from rich.console import Console

    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    told = io.StringIO()
    width = None if on_terminal else 120
    yield Console(
        file=told, force_terminal=on_terminal, width=width, markup=False, emoji=False, highlight=False
    )
    _write(told.getvalue())


def _write(text: str) -> None:
    """To standard output, now; raises OSError if it is closed, full, or nobody reads it any more."""
    stream = sys.stdout
    try:
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        stream.write(_spelled(text, stream.encoding or "utf-8"))
        stream.flush()
    except OSError as error:
        with suppress(OSError, AttributeError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is left in its buffer
        raise OSError(error.errno, error.strerror, "standard output") from error


def _spelled(text: str, encoding: str) -> str:
    """A text as a terminal of some encoding can show it.

    >>> _spelled("σ of k̂ ≥ 0.7", "ascii")
    'sigma of khat >= 0.7'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for symbol, word in SPELLED.items():
            text = text.replace(symbol, word)
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)
