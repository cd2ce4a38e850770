"""Run jobs wherever joblib has been told to: in processes here, or on the machines of a cluster."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any, TypeVar

import joblib

logger = logging.getLogger(__name__)

MOST_LOSSES = 3
"""Times in a row that a worker may be lost with no job finished between: then the job is why."""

Task = TypeVar("Task")


def runs_elsewhere() -> bool:
    """Whether ``joblib.parallel_config`` asks for more than one process, or for a cluster of whatever size.
    Raises ValueError if it asks for threads: fits of one process share Pyro's parameter store and torch's
    random stream.

    Examples
    --------
    >>> runs_elsewhere()
    False
    >>> with joblib.parallel_config(backend="loky", n_jobs=2):
    ...     runs_elsewhere()
    True
    """
    backend, _ = joblib.parallel.get_active_backend()
    many = joblib.effective_n_jobs(None) > 1
    if many and getattr(backend, "uses_threads", False):
        raise ValueError(
            "joblib is configured to run jobs on threads, and fits need processes of their own; "
            "give parallel_config(backend='loky', 'dask' or 'ray')"
        )
    return many or not type(backend).__module__.startswith("joblib._parallel_backends")


def finished_jobs(
    function: Callable[..., Any], tasks: Sequence[Task], *shared: Any
) -> Iterator[tuple[Task, Any]]:
    """``function(task, *shared)`` of every task, each as it is finished, whatever their order.

    What was running on a worker that is lost (killed for its memory, unplugged, preempted) runs again.

    Raises
    ------
    RuntimeError
        If workers are lost three times in a row without a job being finished between.
    Exception
        What a job raises.
    """
    waiting = dict(enumerate(tasks))
    losses = 0
    while waiting:
        try:
            for i, result in _results(function, waiting, shared):
                losses = 0
                yield waiting.pop(i), result
        except Exception as error:
            if not _is_loss(error):
                raise
            losses += 1
            reason = str(error).strip().split("\n")[0]
            if losses == MOST_LOSSES:
                raise RuntimeError(
                    f"workers were lost {MOST_LOSSES} times and no job finished between ({reason}); "
                    "most often their memory does not suffice: give each more, or run fewer at once"
                ) from error
            logger.warning(
                "a worker was lost, and the %d jobs that are not finished run again: %s", len(waiting), reason
            )


def _results(
    function: Callable[..., Any], waiting: dict[int, Any], shared: tuple[Any, ...]
) -> Iterator[tuple[int, Any]]:
    backend, _ = joblib.parallel.get_active_backend()
    begun = list(waiting.items())  # jobs that are finished leave it while others are sent
    lazily = getattr(backend, "supports_return_generator", False)
    parallel = joblib.Parallel(batch_size=1, return_as="generator_unordered" if lazily else "list")
    results: Iterator[tuple[int, Any]] = iter(
        parallel(joblib.delayed(_numbered)(function, i, task, *shared) for i, task in begun)
    )
    return results


def _numbered(function: Callable[..., Any], number: int, task: Any, *shared: Any) -> tuple[int, Any]:
    return number, function(task, *shared)


def _is_loss(error: Exception) -> bool:
    """Whether it is the worker that broke and not the job: what process pools and Dask raise then."""
    of_the_cluster = type(error).__module__.split(".")[0] in ("distributed", "ray")
    return of_the_cluster or isinstance(error, BrokenExecutor | CancelledError)
