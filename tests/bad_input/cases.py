"""What a table of wrong inputs is made of, and the one test that all of its rows pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Case(NamedTuple):
    """A wrong input and what has to be said about it."""

    about: str
    call: Callable[[], Any]
    error: type[Exception]
    argument: str
    """What the message calls the thing that is wrong, with its value where that is short."""
    remedy: str
    """What the message tells to do."""


def table(*cases: Case) -> pytest.MarkDecorator:
    """The decorator that runs a test once for each row."""
    names = [case.about for case in cases]
    assert len(set(names)) == len(names), "two rows are about the same"
    return pytest.mark.parametrize("case", cases, ids=names)


def check(case: Case) -> None:
    """The documented exception, with a message that names the argument and the remedy."""
    with pytest.raises(case.error) as caught:
        case.call()
    message = str(caught.value)
    assert case.argument in message, message
    assert case.remedy in message, message
    assert len(message) < 700, message
