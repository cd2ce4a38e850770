"""Progress: a bar on a terminal and in a notebook, plain lines of the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

Show = Callable[[int, str], None]
"""``show(done, note)``: ``done`` units are done; the note says more."""

SECONDS_BETWEEN_LINES = 5.0
NARROW = 10
"""Width of the bar: the rate, the time left and the note fit beside it in 80 columns."""


@contextmanager
def progress_bar(total: int, description: str, *, enabled: bool = True) -> Iterator[Show]:
    """Shows how far a job is: with rich on a terminal (rate, time left, note), with tqdm in a notebook, by
    ``logging`` at level INFO elsewhere."""
    if not enabled:
        yield lambda _done, _note: None
    elif sys.stderr.isatty():
        with _bar(total, description) as show:
            yield show
    elif _in_notebook():
        with _cell_bar(total, description) as show:
            yield show
    else:
        yield _lines(total, description)


def _in_notebook() -> bool:
    """Whether a cell of a notebook runs this, which has no terminal and does not show the log."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def _cell_bar(total: int, description: str) -> Iterator[Show]:
    """A bar of characters below a cell: the kind of it that needs no widgets to be installed."""
    from tqdm.std import tqdm

    with tqdm(total=total, desc=description, file=sys.stderr, ncols=78, mininterval=0.5) as bar:

        def show(done: int, note: str) -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)

        yield show


@contextmanager
def _bar(total: int, description: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second, over the last seconds."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(NARROW),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def _lines(total: int, description: str) -> Show:
    last = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            logger.info("%s: %d of %d, %s", description, done, total, note)

    return show
