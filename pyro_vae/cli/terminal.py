"""What a terminal is told: errors as sentences, with their exit codes; lines that do nothing to it."""

import io
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from pyro_vae.arguments import printable

FAILED = 1
BAD_ARGUMENT = 2
INTERRUPTED = 130


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End the command with one sentence and its exit code where the user, the disk or the numbers went wrong;
    whatever else is raised is a defect, and keeps its traceback."""
    from pyro_vae.svi import NonFiniteError, RankError

    try:
        yield
    except (NonFiniteError, RankError) as error:
        _stop(str(error), FAILED)
    except (ValueError, FileNotFoundError) as error:
        _stop(str(error), BAD_ARGUMENT)
    except OSError as error:
        _stop(_with_notes(f"{error.filename or 'the run'}: {error.strerror or error}", error), FAILED)
    except KeyboardInterrupt as error:
        _stop(_with_notes("interrupted", error), INTERRUPTED)


def _with_notes(sentence: str, error: BaseException) -> str:
    return "; ".join([sentence, *getattr(error, "__notes__", [])])


def _stop(sentence: str, code: int) -> NoReturn:
    print(_between_words(printable(f"pyro-vae: {sentence}")), file=sys.stderr)
    raise typer.Exit(code)


class PlainText(logging.Formatter):
    """Lines of the log, in which names of files do nothing to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_between_words(printable(line)) for line in super().format(record).split("\n"))


def _between_words(line: str) -> str:
    """A line broken between words where a terminal is too narrow, which would break it anywhere."""
    if not sys.stderr.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def occupy_standard_streams() -> None:
    """Open what is closed among input, output and errors, and write what an encoding lacks as escapes.

    The next file that is opened would get the number of a closed stream, and what is meant for the terminal;
    and a character that the terminal's encoding does not have must not end the command."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
