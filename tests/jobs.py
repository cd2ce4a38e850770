"""What workers do in the tests of dispatch: in a module of its own that they import quickly."""

import os
import signal
from pathlib import Path


def square(task: int, folder: Path) -> int:
    """Each job notes that it has begun."""
    (folder / f"{task}-{os.getpid()}").touch()
    return task * task


def square_or_die_once(task: int, folder: Path) -> int:
    """The worker of job 3 is killed, as by a machine without memory, the first time."""
    if task == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(task, folder)


def die_always(task: int, folder: Path) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(task, folder)


def fail(task: int, folder: Path) -> int:
    raise ArithmeticError(f"job {task}")
