"""Choose by the clock how many steps the next call takes, and on how many threads; numbers do not depend on
it."""

from collections.abc import Sequence

SECONDS_PER_CALL = 0.1
"""Python handles an interrupt only between calls."""

SLOW = 1e9
"""Floating-point operations per second of a first call, on the low side."""

FORGETTING = 1.02
"""By this factor what was measured before looks better with each call that used another number of threads."""


class Pace:
    """Seconds per step for each number of threads.

    On a machine that other processes share, threads that wait for each other at the end of every operation
    can be twenty times slower than one alone; on an idle one they are faster. So each choice is tried, the
    fastest is used, and the others are tried again when what was measured is old. The results of a step do
    not depend on the number of threads.

    Examples
    --------
    >>> pace = Pace([1, 2], flops=1e8)
    >>> for seconds in (0.3, 0.2):
    ...     pace.note(pace.threads, steps=10, seconds=seconds)
    >>> pace.threads, pace.steps
    (2, 5)
    """

    def __init__(self, choices: Sequence[int], flops: float) -> None:
        self._seconds: dict[int, float | None] = dict.fromkeys(choices)
        self._guess = flops / SLOW

    @property
    def threads(self) -> int:
        """The number that the next call should use."""
        return min(self._seconds, key=lambda n: self._seconds[n] or 0.0)

    @property
    def steps(self) -> int:
        """The number of steps that it should take."""
        return max(1, int(SECONDS_PER_CALL / max(self._seconds[self.threads] or self._guess, 1e-9)))

    def note(self, threads: int, *, steps: int, seconds: float) -> None:
        """Note how long a call took."""
        for other, known in self._seconds.items():
            if other != threads and known is not None:
                self._seconds[other] = known / FORGETTING
        self._seconds[threads] = seconds / max(steps, 1)
