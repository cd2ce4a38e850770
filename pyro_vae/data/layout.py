"""How a text file of a table is written: its separator, its decimal sign, and whether a header stands first.

A guess that could be wrong is not made: the reader is asked instead.
"""

import csv
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.arguments import brief

SAMPLE_LINES = 1000
SEPARATORS = (",", ";", "\t", "|")
SPACES = r"\s+"
NAMED_SEPARATORS = {"tab": "\t", r"\t": "\t", "space": SPACES, " ": SPACES, SPACES: SPACES}
"""How a separator can be typed that is hard to type."""

MISSING = frozenset(
    ("", "na", "n/a", "nan", "-nan", "null", "none", "#n/a", "#na", "<na>", "1.#ind", "1.#qnan")
)
"""What stands where a value is missing, in lower case."""

SURELY_COUNTED = 10
"""Columns from which on a first row 0, 1, 2, … is no row of data."""

_INTEGER = re.compile(r"[+-]?\d+")
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_BOOLEANS = ("true", "false")
_HTML = re.compile(r"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)

Row = list[str]


@dataclass(frozen=True)
class Layout:
    """What pandas must be told to read a file right."""

    separator: str
    decimal: str
    names: tuple[str, ...] | None
    """The header; None if there is none."""
    first_line: int
    """Of the data, counted from 0."""


def layout_of(path: Path, separator: str | None, header: bool | None) -> Layout:
    """The layout of a file, from its first lines. Raises ValueError if the file is empty or no text, its
    lines have different numbers of fields, or it can be read in two ways.

    Parameters
    ----------
    path
        The file.
    separator, header
        What the reader has said of it.
    """
    lines = _sample(path)
    blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    if blank == len(lines):
        raise ValueError(f"{path} cannot be read as a table: No columns to parse, the file is empty")
    lines = lines[blank:]
    chosen = _separator(path, lines, separator)
    rows = _fields(lines, chosen)
    decimal = _decimal(path, rows)
    numbers = [[_with_point(cell, decimal) for cell in row] for row in rows]
    has_header = _has_header(path, numbers) if header is None else header
    first, body = rows[0], rows[1:]
    if lines[0].lstrip().startswith("#") and body and len(body[-1]) != len(first):
        raise ValueError(f"{path} begins with a comment, {brief(lines[0].strip())}; remove such lines")
    if has_header and body and len(body[0]) != len(first):
        raise ValueError(
            f"{path} has {len(first)} names in its header and {len(body[0])} fields in the row below it; "
            f"name every column, leave no separator at the ends of lines{_or_no_header(numbers[0])}"
        )
    if not has_header:
        return Layout(chosen, decimal, None, blank)
    return Layout(chosen, decimal, _distinct([_clean(name) for name in first]), blank + 1)


def is_number(text: str) -> bool:
    """Whether a field is a number or a truth value, as pandas reads them.

    >>> [is_number(text) for text in ("1e-3", "True", "NA", "1_000", "setosa")]
    [True, True, False, False, False]
    """
    if text.lower() in _BOOLEANS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text.lower() not in MISSING


def _sample(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = "".join(itertools.islice(file, SAMPLE_LINES))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read as a table: {str(error).strip('. ')}; save it as text in UTF-8"
        ) from error
    if _HTML.match(text):
        raise ValueError(
            f"{path} cannot be read as a table: it looks like HTML, a page and not the file that it "
            "links to; download the table itself"
        )
    if "\0" in text:
        raise ValueError(f"{path} cannot be read as a table: it is not text; save it as text in UTF-8")
    return text.splitlines()


def _fields(lines: Sequence[str], separator: str) -> list[Row]:
    """The fields of all lines that are not blank."""
    if separator == SPACES:
        return [line.split() for line in lines if line.strip()]
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


def _separator(path: Path, lines: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        return NAMED_SEPARATORS.get(asked, asked)
    widths = {separator: {len(row) for row in _fields(lines, separator)} for separator in SEPARATORS}
    several = [separator for separator, found in widths.items() if min(found) > 1]
    even = [separator for separator in several if len(widths[separator]) == 1]
    if len(even) == 1 and (len(several) == 1 or even == [","]):
        return even[0]
    if several:
        # 1,5;2,5 has even commas too: of those that split every line, the comma may be a decimal sign
        others = [separator for separator in several if separator != ","]
        if len(others) > 1:
            told = " and ".join(repr(separator) for separator in others)
            raise ValueError(
                f"{path} has both {told} in every line; give separator={others[0]!r} (--separator)"
            )
        return others[0] if others else ","
    spaced = _fields(lines, SPACES)
    if len(spaced[0]) > 1 and len({len(row) for row in spaced}) == 1 and not any("," in li for li in lines):
        body = spaced[1:] or spaced
        if all(is_number(cell) for row in body for cell in row):
            return SPACES
    body_only = {
        separator: found
        for separator in SEPARATORS
        if (found := {len(row) for row in _fields(lines[1:], separator)}) and min(found) > 1
    }
    # the header alone lacks the separator, or has another one: the widths are compared below
    return next(iter(body_only), ",")


def _decimal(path: Path, rows: Sequence[Row]) -> str:
    """The sign that numbers have; pandas takes one for the whole file."""
    cells = [cell for row in rows for cell in row]
    with_comma = [cell for cell in cells if _COMMA_NUMBER.fullmatch(cell)]
    with_both = [cell for cell in cells if re.fullmatch(r"[+-]?[\d.,]*\d[.,]\d[\d.,]*", cell)]
    with_both = [cell for cell in with_both if "," in cell and (cell.count(",") > 1 or "." in cell)]
    if with_both:
        raise ValueError(
            f"{path} holds {brief(with_both[0])}; write numbers without a separator of thousands"
        )
    if not with_comma:
        return "."
    with_point = [cell for cell in cells if "." in cell and is_number(cell)]
    if with_point:
        raise ValueError(
            f"{path} holds {brief(with_comma[0])} and {brief(with_point[0])}; write all numbers with one "
            "decimal sign"
        )
    if all(_THOUSANDS.fullmatch(cell) for cell in with_comma):
        raise ValueError(
            f"{path} holds {brief(with_comma[0])}, whose comma may divide thousands or be a decimal sign; "
            "write numbers with a decimal point, and without a separator of thousands"
        )
    return ","


def _with_point(cell: str, decimal: str) -> str:
    return cell.replace(",", ".") if decimal == "," and _COMMA_NUMBER.fullmatch(cell) else cell


def _has_header(path: Path, rows: Sequence[Row]) -> bool:
    """Whether the first row names the columns; an error where that cannot be known."""
    first, body = rows[0], rows[1:]
    columns = [[row[i] for row in body if i < len(row)] for i in range(len(first))]
    words = [i for i, cell in enumerate(first) if not is_number(cell) and cell.lower() not in MISSING]
    if not words:
        return _numbers_are_names(path, first, columns)
    if not body:
        return True
    if any(_are_numbers(columns[i]) for i in words):
        return True
    numbers = [cell for cell in first if is_number(cell)]
    if not numbers:
        return True
    # every word stands over words, as in "5.1,3.5,setosa": the numbers beside it decide
    if any(first[i] in columns[i] for i in words) or not all(map(_INTEGER.fullmatch, numbers)):
        return False
    raise _ask(path, first)


def _numbers_are_names(path: Path, first: Row, columns: Sequence[Sequence[str]]) -> bool:
    """Whether a first row of numbers names the columns: 0, 1, 2, … as pandas does, or 2019, 2020, …"""
    if len(first) > 1 and first == ["", *map(str, range(len(first) - 1))]:
        return True  # to_csv writes an index without a name
    if not all(is_number(cell) and cell.lower() not in _BOOLEANS for cell in first):
        return False
    values = [float(cell) for cell in first]
    if len(set(values)) < len(values) or len(values) < 2:
        return False
    whole = all(map(_INTEGER.fullmatch, first))
    counts = whole and values in ([*range(len(values))], [*range(1, len(values) + 1)])
    fractions = any(is_number(cell) and not _INTEGER.fullmatch(cell) for column in columns for cell in column)
    if counts and (len(values) >= SURELY_COUNTED or (fractions and values[0] == 0)):
        return True
    steps = {round(b - a, 9) for a, b in itertools.pairwise(values)}
    even = len(values) > 2 and len(steps) == 1
    apart = all(_is_apart(value, column) for value, column in zip(values, columns, strict=True))
    if counts or ((whole or even) and apart) or (whole and even):
        raise _ask(path, first)
    return False


def _is_apart(value: float, column: Sequence[str]) -> bool:
    numbers = [float(cell) for cell in column if is_number(cell) and cell.lower() not in _BOOLEANS]
    return bool(numbers) and not min(numbers) <= value <= max(numbers)


def _are_numbers(column: Sequence[str]) -> bool:
    known = [cell for cell in column if cell.lower() not in MISSING]
    return bool(known) and all(map(is_number, known))


def _ask(path: Path, first: Row) -> ValueError:
    shown = ",".join(first)
    shown = shown if len(shown) < 60 else f"{shown[:57]}..."
    return ValueError(
        f"{path} begins with {shown!r}, which may name the columns or be data; give header=True (--header) "
        "or header=False (--no-header)"
    )


def _or_no_header(first: Row) -> str:
    return ", or give header=False (--no-header)" if any(map(is_number, first)) else ""


def _clean(name: str) -> str:
    """numpy writes a header as a comment."""
    return name.removeprefix("#").strip()


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names that occur twice get a number, as pandas gives them."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.append(f"{name}.{count}" if count else name)
    return tuple(found)
