"""A walk from a program to every place that it would look at, without running any of it."""

import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import is_dataclass
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro import infer
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_vae.graphs.places import is_installed, is_library
from pyro_vae.graphs.surroundings.named import is_of_user, is_opaque, names_in, operands_of
from pyro_vae.graphs.surroundings.place import MISSING, Numbers, Place, code_of

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type(None))
_SOURCES = (Iterator, random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_WITH_SETTINGS = (infer.ELBO, Distribution, Transform)
"""Objects of libraries that may be changed after they were made."""
_WITHOUT_FILE = "<string>"
"""The file of ``python -c`` and ``exec``."""
_MANY, _MOST = 256, 16_384
"""Longer lists are looked at as a whole if numbers and words are all that they hold, and up to the second
length; others are known by their identity and length alone."""
_CONTENTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {*_CONTENTS, "training"}
_ANY_NAME = frozenset(("getattr", "vars", "__dict__", "__getattribute__"))


def places_around(programs: Sequence[Any]) -> tuple[list[Place], list[str]]:
    """Every place that these functions, modules and objects would look at, each once, and what
    may change there without a trace: iterators, random generators, tables, objects with slots."""
    walk = _Walk()
    for program in programs:
        walk.visit(program, _name_of(program))
    return walk.places(), walk.unseen


class _Walk:
    """A walk through everything that can be reached from a program, without running any of it."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.found: list[Place] = []
        self.known: set[tuple[int, str]] = set()
        self.attributes: list[tuple[Place, Any]] = []
        """Of objects of the user's classes: read only if some code names them."""
        self.names: set[str] = set()
        self.classes: dict[type, Mapping[str, Any]] = {}
        self.unseen: list[str] = []

    def places(self) -> list[Place]:
        """What was found; of the attributes of a user's objects those that some code names."""
        done: set[str] = set()
        pending = self.attributes
        while pending:
            read = [item for item in pending if self._is_named(item[0].key)]
            pending = [item for item in pending if not self._is_named(item[0].key)]
            if not read:
                break
            self.attributes = []
            for place, value in read:
                if place.name not in done:
                    done.add(place.name)
                    self.note(place, value)
            pending += self.attributes
        return self.found

    def _is_named(self, key: Any) -> bool:
        return key in self.names or bool(self.names & _ANY_NAME)

    def note(self, place: Place, value: Any) -> None:
        """Remember a place, and go on from what lies there."""
        self.add(place)
        self.visit(value, place.name)

    def add(self, place: Place) -> None:
        """Remember a place."""
        where = id(place.container), repr(place.key)
        if where not in self.known:
            self.known.add(where)
            self.found.append(place)

    def visit(self, value: Any, name: str) -> None:
        if isinstance(value, (*_PLAIN, Tensor)) or id(value) in self.seen:
            return
        self.seen[id(value)] = value
        for kind, go_on in _KINDS:
            if isinstance(value, kind):
                go_on(self, value, name)
                return
        if isinstance(value, _SOURCES):
            self.unseen.append(f"it may take from {name} whenever it runs")
        elif is_opaque(type(value)):
            self.unseen.append(f"it reads {name}, and {type(value).__qualname__} may change unseen")
        elif isinstance(value, type):
            self.class_(value)
        elif isinstance(value, _WITH_SETTINGS):
            for key, item in list(vars(value).items()):
                if isinstance(item, (*_PLAIN, Tensor, *_WITH_SETTINGS)) and not key.startswith("_"):
                    self.note(Place(f"{name}.{key}", vars(value), key, item), item)
        elif is_of_user(type(value)) or is_dataclass(value) or type(value).__name__ in _NAMESPACES:
            self.object_(value, name)

    def function(self, function: FunctionType, name: str) -> None:
        code = function.__code__
        if is_library(code.co_filename) and code.co_filename != _WITHOUT_FILE:
            wrapped = getattr(function, "__wrapped__", None)
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            for cell in cells.values():  # a decorator of a library around a user's function
                self._visit_programs(_contents(cell), name)
            self._visit_programs(wrapped, name)
            return
        for free, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if (value := _contents(cell)) is not MISSING:
                self.note(Place(free, cell, "cell_contents", value), value)
        self.add(Place(f"the code of {name}", function, code_of, code))
        self.names |= names_in(code)
        for imported in sorted(operands_of(code, "IMPORT_NAME")):
            for full in (imported, f"{function.__globals__.get('__package__')}.{imported}"):
                if full in sys.modules:
                    self.module_of_python(sys.modules[full], full)
        for global_ in sorted(operands_of(code, "LOAD_GLOBAL", "LOAD_NAME") & function.__globals__.keys()):
            value = function.__globals__[global_]
            if isinstance(value, ModuleType):
                self.module_of_python(value, global_)
            else:
                self.note(Place(global_, function.__globals__, global_, value), value)
        for key, value in vars(function).items():
            self.attributes.append((Place(f"{name}.{key}", vars(function), key, value), value))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(default, name)

    def _visit_programs(self, value: Any, name: str) -> None:
        if isinstance(value, FunctionType | MethodType | nn.Module | functools.partial):
            self.visit(value, name)

    def method(self, method: MethodType, name: str) -> None:
        self.visit(method.__self__, name.rpartition(".")[0] or name)
        self.visit(method.__func__, name)

    def partial(self, partial: "functools.partial[Any]", name: str) -> None:
        self.visit(partial.func, name)
        self.visit(partial.args, f"{name}.args")
        self.visit(partial.keywords, f"{name}.keywords")

    def module_of_python(self, module: ModuleType, name: str) -> None:
        """The entries of a user's file that code names as ``settings.beta``."""
        file = getattr(module, "__file__", None) or ""
        if is_library(file) or is_installed(file):
            return
        for key, value in list(vars(module).items()):
            if not key.startswith("__"):
                self.attributes.append((Place(f"{name}.{key}", vars(module), key, value), value))

    def module(self, module: nn.Module, name: str) -> None:
        attributes = vars(module)
        for key in (*_CONTENTS, *_HOOKS):
            entries = attributes.get(key, {})
            self.add(Place(f"len({name}.{key})", entries, len, len(entries)))
        for key in _CONTENTS:
            for entry, value in attributes.get(key, {}).items():
                place = Place(f"{name}.{entry}", attributes[key], entry, value, key == "_buffers")
                self.note(place, value)
        for key in _HOOKS:
            for hook in attributes.get(key, {}).values():
                self.visit(hook, f"{name}.{key}")
        for key, value in list(attributes.items()):
            if key not in _OF_EVERY_MODULE and key not in _CONTENTS:
                self.attribute(module, attributes, name, key, value)
        self.class_(type(module))
        self.methods(module, name)

    def attribute(self, owner: Any, attributes: dict[str, Any], name: str, key: str, value: Any) -> None:
        place = Place(f"{name}.{key}", attributes, key, value)
        if is_of_user(type(owner)):
            self.attributes.append((place, value))
        elif isinstance(value, _PLAIN) and not key.startswith("_"):
            self.add(place)
        elif isinstance(value, FunctionType | MethodType | nn.Module | list | tuple | dict):
            self._visit_programs(value, f"{name}.{key}")
            for item in _items(value):
                self._visit_programs(item, f"{name}.{key}")

    def object_(self, value: Any, name: str) -> None:
        attributes = getattr(value, "__dict__", {})
        for key, item in list(attributes.items()):
            self.attributes.append((Place(f"{name}.{key}", attributes, key, item), item))
        self.class_(type(value))
        self.methods(value, name)

    def methods(self, value: Any, name: str) -> None:
        """Of a user's class: an object may get one of its own in their place."""
        attributes = getattr(value, "__dict__", {})
        for base in filter(is_of_user, type(value).__mro__):
            for key, item in vars(base).items():
                if isinstance(item, FunctionType) and not key.startswith("__") and key not in attributes:
                    place = Place(f"vars({name})[{key!r}]", attributes, key, MISSING)
                    self.attributes.append((place, MISSING))

    def class_(self, kind: type) -> None:
        for base in kind.__mro__:
            if not is_of_user(base) or base in self.classes:
                continue
            own = self.classes[base] = vars(base)  # kept: each call makes another view of the same entries
            for key, value in list(own.items()):
                place = Place(f"{base.__name__}.{key}", own, key, value)
                if isinstance(value, FunctionType):
                    self.visit(value, place.name)
                    self.attributes.append((place, value))
                elif isinstance(value, property | staticmethod | classmethod):
                    self.visit(getattr(value, "fget", None) or getattr(value, "__func__", None), key)
                elif not key.startswith("__"):
                    self.attributes.append((place, value))

    def mapping(self, value: Mapping[Any, Any], name: str) -> None:
        self.add(Place(f"len({name})", value, len, len(value)))
        if len(value) <= _MANY:
            for key, item in list(value.items()):
                self.note(Place(f"{name}[{key!r}]", value, key, item), item)

    def sequence(self, value: Sequence[Any], name: str) -> None:
        self.add(Place(f"len({name})", value, len, len(value)))
        if len(value) <= _MANY:
            for i, item in enumerate(value):
                self.note(Place(f"{name}[{i}]", value, i, item), item)
        elif len(value) <= _MOST and all(isinstance(item, _PLAIN) for item in value):
            self.add(Place(name, value, Numbers, Numbers(value)))

    def set_(self, value: Set[Any], name: str) -> None:
        self.add(Place(name, value, frozenset, frozenset(value)))


_KINDS: tuple[tuple[Any, Callable[[_Walk, Any, str], None]], ...] = (
    (FunctionType, _Walk.function),
    (MethodType, _Walk.method),
    (functools.partial, _Walk.partial),
    (nn.Module, _Walk.module),
    (dict, _Walk.mapping),
    ((list, tuple, deque), _Walk.sequence),
    ((set, frozenset), _Walk.set_),
)
_NAMESPACES = ("SimpleNamespace", "Namespace", "_local")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return MISSING


def _name_of(program: Any) -> str:
    if isinstance(program, BuiltinFunctionType | FunctionType | MethodType):
        return program.__qualname__.rpartition("<locals>.")[2]
    return type(program).__name__
