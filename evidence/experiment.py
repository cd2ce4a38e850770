"""What an experiment is: independent jobs that give rows of one table, and a figure of that table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd
import torch
from matplotlib.figure import Figure

__all__ = ["Effort", "Experiment", "Job", "Results", "Row", "float32"]

Row = dict[str, Any]
Job = Callable[[], Sequence[Row]]
"""A call that can be sent to another process."""

Results = Mapping[str, pd.DataFrame]
"""Tables by the name of their experiment."""


@dataclass(frozen=True)
class Effort:
    """How much to do: ``tiny`` for the tests, ``quick`` for a look, ``full`` for the answer."""

    name: Literal["tiny", "quick", "full"]
    mnist: Path | None = None
    """Folder with MNIST's IDX files; what needs them is left out without it."""


class Experiment(Protocol):
    """A module of :mod:`evidence.experiments`."""

    SECONDS: float
    """Of the full effort, on two cores: jobs that have not begun by then are left out, and that is told."""

    def jobs(self, effort: Effort) -> list[Job]:
        """What to do, in the order in which it may be cut short."""

    def draw(self, results: Results) -> Figure:
        """The figure."""


@contextmanager
def float32() -> Iterator[None]:
    """Networks of torch's usual precision inside, whatever the default is outside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
