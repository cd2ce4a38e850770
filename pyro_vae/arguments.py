"""What arguments must be, in one voice: NAME is VALUE; give REMEDY."""

import inspect
import math
from numbers import Integral, Real
from typing import Any

__all__ = [
    "brief",
    "check_numbers",
    "check_programs",
    "cut",
    "parameters_of",
    "printable",
]

OPTIONAL = ("epochs", "steps", "patience", "max_norm")
SEEDS = 2**63
MOST_QUOTED = 80


def brief(value: Any) -> str:
    """What a message may quote of somebody's file or argument: printable, and at most 80 characters.

    >>> brief("a" * 100), brief("tab\\t")
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…", "'tab\\\\t'")
    """
    return cut(repr(value[: 2 * MOST_QUOTED] if isinstance(value, str | bytes | list | tuple) else value))


def cut(text: str) -> str:
    """A text without quotes, as :func:`brief` has it."""
    start = printable(text[: 2 * MOST_QUOTED])
    return start if len(start) <= MOST_QUOTED else f"{start[: MOST_QUOTED - 1]}…"


def printable(text: str) -> str:
    """A text whose control characters, and bytes that are no text, are to be seen and do nothing.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_programs(**programs: Any) -> None:
    """Raise a TypeError that names the first argument that is not a Pyro program."""
    for name, program in programs.items():
        if isinstance(program, type):
            raise TypeError(
                f"{name} is the class {program.__name__}; call it, {name}={program.__name__}(...)"
            )
        if not callable(program):
            raise TypeError(
                f"{name} is a {type(program).__name__}; give a Pyro program: a PyroModule or a function"
            )


def check_numbers(**numbers: Any) -> None:
    """Raise a ValueError that names the first argument that is not the number it has to be."""
    for name, value in numbers.items():
        if value is None and name in OPTIONAL:
            continue
        whole, seed = name not in ("lr", "max_norm"), name.startswith("seed")
        good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if good and math.isfinite(value) and (0 <= value < SEEDS if seed else value > 0):
            continue
        needed = f"a positive {'integer' if whole else 'number'}"
        if seed:
            needed = "an integer of at least 0 and less than 2**63"
        raise ValueError(f"{name} is {value!r}; give {needed}")


def parameters_of(function: Any) -> list[str]:
    """The names of a function's keyword-only arguments."""
    signature = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
