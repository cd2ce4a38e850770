"""What a program is called with, taken apart: tensors, floats, and everything that a graph is made for."""

import copy
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.graphs.surroundings import is_of_user

_BY_VALUE = (bool, int, str, bytes, complex, torch.dtype, torch.device, torch.Size, type(None))
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, MethodType, nn.Module, partial, type)


class UnknownArgumentError(Exception):
    """An argument whose contents may change without a sign: an array, a generator, an object."""


class Call(NamedTuple):
    """The arguments of a program by their parts."""

    tensors: list[Tensor]
    floats: list[float]
    signature: tuple[Any, ...]
    """Everything else: shapes, numbers, words, and how they are nested."""
    programs: list[Any]
    """Functions, modules and objects of the user's classes among them, known by their identity."""


def take_apart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The parts of ``program(*args, **kwargs)``. Raises UnknownArgumentError for an argument of a kind that
    is not known.

    Examples
    --------
    >>> call = take_apart((torch.zeros(2), {"beta": 0.5, "mask": None}), {})
    >>> len(call.tensors), call.floats
    (1, [0.5])
    """
    call = Call([], [], (), [])
    signature = tuple([_part(value, call, f"argument {i + 1}") for i, value in enumerate(args)])
    if kwargs:
        names = tuple(kwargs)
        signature += (names, *[_part(value, call, f"argument {name}") for name, value in kwargs.items()])
    return call._replace(signature=signature)


def _part(value: Any, call: Call, name: str) -> Any:
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if value.layout != torch.strided or value.requires_grad:
            what = "it requires a gradient" if value.requires_grad else f"its layout is {value.layout}"
            raise UnknownArgumentError(f"{name} is a tensor, and {what}")
        call.tensors.append(value)
        return kind, value.shape, value.dtype, value.device, value.stride()
    if kind is float:
        call.floats.append(value)
        return kind
    if isinstance(value, _BY_VALUE):
        return kind, value
    if kind in (list, tuple):
        return kind, *[_part(item, call, f"{name}[{i}]") for i, item in enumerate(value)]
    if kind is dict:
        return kind, *[(key, _part(item, call, f"{name}[{key!r}]")) for key, item in value.items()]
    if isinstance(value, _BY_IDENTITY):
        call.programs.append(value)
        return kind, id(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind, *[_part(item, call, f"{name}[{i}]") for i, item in enumerate(value)]
    if (attributes := _attributes(value)) is not None:
        return kind, *[(key, _part(item, call, f"{name}.{key}")) for key, item in attributes.items()]
    if all(map(is_of_user, kind.__mro__[:-1])) and not any("__slots__" in vars(k) for k in kind.__mro__):
        call.programs.append(value)
        return kind, id(value)
    raise UnknownArgumentError(f"{name} is {kind.__module__}.{kind.__qualname__}, which may change unseen")


def rebuilt(value: Any, tensors: list[Tensor], floats: list[Any]) -> Any:
    """The same nest with other tensors and floats, which are taken from the front of the lists."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        return tensors.pop(0)
    if kind is float:
        return floats.pop(0)
    if kind in (list, tuple):
        return kind([rebuilt(item, tensors, floats) for item in value])
    if kind is dict:
        return {key: rebuilt(item, tensors, floats) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[rebuilt(item, tensors, floats) for item in value])
    if (attributes := _attributes(value)) is not None:
        other = copy.copy(value)
        for key, item in attributes.items():
            object.__setattr__(other, key, rebuilt(item, tensors, floats))
        return other
    return value


def _attributes(value: Any) -> dict[str, Any] | None:
    """Of an object that is nothing but its attributes: a namespace, a dataclass."""
    if type(value) in (Namespace, SimpleNamespace):
        return dict(vars(value))
    if is_dataclass(value) and not isinstance(value, type | nn.Module):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None
