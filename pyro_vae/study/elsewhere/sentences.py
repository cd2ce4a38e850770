"""Say in the log what fits and diagnoses say: once in a study, wherever it is said."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

SPEAKERS = ("pyro_vae.svi.loop", "pyro_vae.svi.engines.many_steps", "pyro_vae.guides.refined")
"""Loggers of what is true of a model and not of a seed, or of many batches alike, so that every fit of a
study would say it again."""


@dataclass(frozen=True)
class Sentence:
    """A line of the log that can be sent to another process."""

    logger: str
    level: int
    text: str


@contextmanager
def each_once() -> Iterator[None]:
    """For this block, what was said in it is not said again.

    Examples
    --------
    >>> speaker = logging.getLogger(SPEAKERS[0])
    >>> with taken_along() as heard, each_once():
    ...     for reason in ("no compiler", "no compiler", "a loader"):
    ...         speaker.warning("captured: %s", reason)
    >>> [sentence.text for sentence in heard]
    ['captured: no compiler', 'captured: a loader']
    """
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known, text = len(said), record.getMessage()
        said.add(text)
        return len(said) > known

    with _filtered(is_new):
        yield


@contextmanager
def taken_along() -> Iterator[list[Sentence]]:
    """For this block, what is said goes into the list and not into the log: of a worker, whose log nobody
    reads and who does not know what others have said."""
    sentences: list[Sentence] = []

    def take(record: logging.LogRecord) -> bool:
        sentences.append(Sentence(record.name, record.levelno, record.getMessage()))
        return False

    with _filtered(take):
        yield sentences


def say(sentences: Sequence[Sentence]) -> None:
    """Into the log of this process."""
    for sentence in sentences:
        logging.getLogger(sentence.logger).log(sentence.level, "%s", sentence.text)


@contextmanager
def _filtered(is_let_through: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in SPEAKERS]
    for logger in loggers:
        logger.filters.insert(0, is_let_through)  # asked first: the inner block's, where workers are here
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_let_through)
