"""What a program would read if it ran again: the numbers, words and tensors around it, and whether they are
still the same.

A graph holds every Python value at what it was when it was traced. They are found without running anything:
from the program's functions to the globals and closures that they name, and on to the objects, modules,
dicts and lists that lie there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.graphs.surroundings import MISSING, Numbers, Place, code_of, places_around

_SMALL = 4096
"""Elements of an array of numpy that is compared at every look; larger ones are known by their identity."""


COMPARED = (bool, int, float, complex, str, bytes, frozenset, Numbers, torch.Size)
"""Values that are the same if they are equal; others only if they are identical."""


class Version(NamedTuple):
    """A tensor that a number was taken from, and how often it had been changed in place by then."""

    tensor: Tensor
    number: int


class Guard:
    """The plain values and tensors around some programs, as they are now.

    Parameters
    ----------
    programs
        Functions, modules and other objects that take part.
    lifted
        Places, by name, whose values may change as long as their kind does not: a graph has them as inputs.
    ignored
        Places, by name, that do not matter.

    Examples
    --------
    >>> options = {"beta": 0.5}
    >>> guard = Guard([lambda: options["beta"]])
    >>> guard.holds()
    True
    >>> options["beta"] = 1.0
    >>> guard.holds(), [place.name for place in guard.changed()]
    (False, ["options['beta']"])
    """

    def __init__(
        self,
        programs: Sequence[Any],
        lifted: frozenset[str] = frozenset(),
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        found, self.unseen = places_around(programs)
        around = [place for place in found if place.name not in ignored]
        self.buffers = [place.value for place in around if place.is_buffer and torch.is_tensor(place.value)]
        """Of the modules among them."""
        self.places = [place for place in around if place.name not in lifted]
        self.inputs = [place for place in around if place.name in lifted]
        """Lifted places, in the order in which a graph takes their values."""
        self._likes = [_kind(place.value) for place in self.inputs]
        self._versions: list[Version] = []
        tensors = [place.value for place in around if isinstance(place.value, Tensor)]
        self._moving = [(tensor, tensor.requires_grad) for tensor in tensors]
        arrays = [p for p in self.places if isinstance(p.value, np.ndarray) and p.value.size <= _SMALL]
        self._arrays = [(place, place.value.copy()) for place in arrays]
        in_dicts = [p for p in self.places if isinstance(p.container, dict) and not p.of_whole]
        self._in_dicts = [(place.container, place.key, place.value) for place in in_dicts]
        lengths = [p for p in self.places if p.key is len]
        self._lengths = [(place.container, place.value) for place in lengths]
        codes = [p for p in self.places if p.key is code_of]
        self._codes = [(place.container, place.value) for place in codes]
        quick = {id(place) for place in (*in_dicts, *lengths, *codes)}
        self._others = [place for place in self.places if id(place) not in quick]

    def freeze(self, numbers: Sequence[Tensor]) -> None:
        """Hold only as long as these tensors are not changed in place: numbers were taken from them."""
        self._versions += [Version(tensor, tensor._version) for tensor in numbers]

    def holds(self) -> bool:
        """Whether everything is as it was."""
        missing = MISSING
        for container, key, value in self._in_dicts:
            now = container.get(key, missing)
            if now is not value and not _same(now, value):
                return False
        for container, length in self._lengths:
            if len(container) != length:
                return False
        for function, code in self._codes:
            if function.__code__ is not code:
                return False
        return (
            all(_same(place.now(), place.value) for place in self._others)
            and all(np.array_equal(place.value, values) for place, values in self._arrays)
            and all(tensor._version == number for tensor, number in self._versions)
            and all(tensor.requires_grad is moves for tensor, moves in self._moving)
            and (not self.inputs or [_kind(place.now()) for place in self.inputs] == self._likes)
        )

    def changed(self) -> list[Place]:
        """The places that are not as they were."""
        now = [place for place in self.places if not _same(place.now(), place.value)]
        now += [place for place, values in self._arrays if not np.array_equal(place.value, values)]
        kinds = zip(self.inputs, self._likes, strict=True)
        return now + [place for place, like in kinds if _kind(place.now()) != like]

    def input_values(self) -> list[Tensor]:
        """What lies at the lifted places now, as tensors."""
        return [as_input(place.now()) for place in self.inputs]


def as_input(value: Any) -> Tensor:
    """A number or a tensor as an input of a graph."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.get_default_dtype())


def is_liftable(place: Place) -> bool:
    """Whether a graph can take the value at a place as an input: a float, or a tensor without a gradient."""
    now = place.now()
    plain = type(now) is Tensor and not now.requires_grad and now.layout == torch.strided
    return place.can_be_set and (type(now) is float or plain)


@contextmanager
def lifted_places(places: Sequence[Place], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Puts tensors where the program will look for its values, and the values back at the end."""
    before = [place.now() for place in places]
    try:
        for place, tensor in zip(places, tensors, strict=True):
            place.put(tensor)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.put(value)


def _same(now: Any, then: Any) -> bool:
    if now is then:
        return True
    return type(now) is type(then) and isinstance(then, COMPARED) and bool(now == then)


def _kind(value: Any) -> Any:
    if type(value) is Tensor:
        return value.shape, value.dtype, value.device, value.stride(), value.requires_grad
    return type(value)
