"""How many CPU threads a step is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["WORTH_A_SECOND_THREAD", "threads_for"]

WORTH_A_SECOND_THREAD = 100e6
"""Floating-point operations of a step, forward and backward. Below, threads cost more to wait for each other
than they save; on a machine that does other work as well they wait up to twenty times as long as the step
takes."""


@contextmanager
def threads_for(flops: float) -> Iterator[None]:
    """One thread inside, if a step is that small; the number outside is given back.

    Examples
    --------
    >>> with threads_for(1e6):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    try:
        if flops < WORTH_A_SECOND_THREAD:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
