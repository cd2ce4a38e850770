"""A place where a program's value lies: an entry, a cell, or something about a container as a whole."""

from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

MISSING = object()
"""What lies where nothing lies."""


class Numbers(tuple[Any, ...]):
    """The numbers and words of a long list."""


def code_of(function: FunctionType) -> CodeType:
    """What reloading a file replaces in a function that stays."""
    return function.__code__


@dataclass(frozen=True)
class Place:
    """An entry of a dict or list, a closure's cell, or something about a container as a whole; what lay there
    when it was found."""

    name: str
    """As a program would write it: ``options['beta']``."""
    container: Any
    key: Any
    value: Any
    is_buffer: bool = False
    """Whether it is a module's buffer."""

    def now(self) -> Any:
        """What lies there."""
        try:
            if self.of_whole:
                return self.key(self.container)
            if isinstance(self.container, CellType):
                return self.container.cell_contents
            return self.container[self.key]
        except (KeyError, IndexError, ValueError):
            return MISSING

    @property
    def of_whole(self) -> bool:
        """Whether its key is a function of the whole container."""
        return any(self.key is of for of in (len, frozenset, Numbers, code_of))

    @property
    def can_be_set(self) -> bool:
        """Whether something else can be put there."""
        changeable = isinstance(self.container, MutableMapping | MutableSequence | CellType)
        return changeable and not self.of_whole

    def put(self, value: Any) -> None:
        """Put something else there."""
        if isinstance(self.container, CellType):
            self.container.cell_contents = value
        else:
            self.container[self.key] = value
