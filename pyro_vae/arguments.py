"""What arguments must be, in one voice: NAME is VALUE; give REMEDY."""

import inspect
import math
import os
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

OPTIONAL = ("epochs", "steps", "patience", "max_norm")
SEEDS = 2**63
MOST_QUOTED = 80


def brief(value: Any) -> str:
    """What a message may quote of somebody's file or argument: printable, and at most 80 characters.

    >>> brief("a" * 100), brief("tab\\t")
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…", "'tab\\\\t'")
    >>> brief(torch.zeros(64, 5)), brief(nn.Linear(5, 8))
    ('a Tensor of shape (64, 5)', 'a Linear')
    """
    if isinstance(value, nn.Module):
        return kind(value)
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) != 1:
        return f"{kind(value)} of shape {tuple(value.shape)}"
    return cut(repr(value[: 2 * MOST_QUOTED] if isinstance(value, str | bytes | list | tuple) else value))


def cut(text: str) -> str:
    """A text without quotes, as :func:`brief` has it."""
    start = printable(text[: 2 * MOST_QUOTED])
    return start if len(start) <= MOST_QUOTED else f"{start[: MOST_QUOTED - 1]}…"


def kind(value: Any) -> str:
    """The type of a value, with its article.

    >>> kind(3), kind([]), kind(torch.zeros(1).numpy())
    ('an int', 'a list', 'an ndarray')
    """
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' or name == 'ndarray' else 'a'} {name}"


def printable(text: str) -> str:
    """A text whose control characters, and bytes that are no text, are to be seen and do nothing.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def check_programs(**programs: Any) -> None:
    """Raise a TypeError that names the first argument that is not a Pyro program."""
    for name, program in programs.items():
        if isinstance(program, type):
            raise TypeError(
                f"{name} is the class {program.__name__}; call it, {name}={program.__name__}(...)"
            )
        if not callable(program):
            raise TypeError(f"{name} is {kind(program)}; give a Pyro program: a PyroModule or a function")


def check_numbers(**numbers: Any) -> None:
    """Raise a ValueError that names the first argument that is not the number it has to be."""
    for name, value in numbers.items():
        if value is None and name in OPTIONAL:
            continue
        whole, seed = name not in ("lr", "max_norm"), name.startswith("seed")
        good = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if good and math.isfinite(value) and (0 <= value < SEEDS if seed else value > 0):
            continue
        needed = f"a positive {'integer' if whole else 'number'}"
        if seed:
            needed = "an integer of at least 0 and less than 2**63"
        raise ValueError(f"{name} is {brief(value)}; give {needed}")


def refuse_lazy(*modules: nn.Module) -> None:
    """Raise a ValueError that names the first layer without parameters.

    >>> refuse_lazy(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))
    Traceback (most recent call last):
    ValueError: the layer '1', a LazyLinear, has no parameters before its first call; call the network...
    """
    for root in modules:
        for name, module in root.named_modules():
            if any(map(is_lazy, module._parameters.values())):
                raise ValueError(
                    f"the layer {name!r}, {kind(module)}, has no parameters before its first call;"
                    " call the network that it is in once on some rows of data before, as by encoder(x[:2])"
                )


def without_trace(error: BaseException) -> str:
    """What an error says, without the table of shapes that Pyro adds.

    >>> without_trace(ValueError("no plate\\n    Trace Shapes:\\n   Param Sites:"))
    'no plate'
    """
    return re.split(r"\n *Trace Shapes:", str(error))[0].rstrip()


def parameters_of(function: Any) -> list[str]:
    """The names of a function's keyword-only arguments."""
    signature = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]


def require_count(name: str, value: Any, least: int, advice: str = "") -> None:
    """Raise a ValueError unless ``value`` is an integer of at least ``least``.

    >>> require_count("chains", 1, 2, ", and 4 is a good number")
    Traceback (most recent call last):
    ValueError: chains is 1; give an integer of at least 2, and 4 is a good number
    """
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} is {brief(value)}; give an integer of at least {least}{advice}")


def positive_integer(name: str, value: Any) -> int:
    """``value``, or a ValueError that names it.

    >>> positive_integer("latent_dim", 8)
    8
    """
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{name} is {brief(value)}; give a positive integer")
    number: int = value
    return number


def positive_integers(name: str, values: Any) -> tuple[int, ...]:
    """A sequence of sizes as a tuple, or a ValueError that names it.

    >>> positive_integers("hidden", [64, 32])
    (64, 32)
    """
    if not isinstance(values, Sequence) or not all(_is_integer(value) and value > 0 for value in values):
        one = f", such as [{values}]" if _is_integer(values) and values > 0 else ""
        raise ValueError(f"{name} is {brief(values)}; give a sequence of positive integers{one}")
    return tuple(values)


def positive_number(name: str, value: Any, *, no_number: type[Exception] = ValueError) -> float:
    """``value`` as a float, or a ValueError that names it; ``no_number`` is the error for what is none.

    >>> positive_number("beta", 2)
    2.0
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 < number < math.inf:
        wrong = ValueError if isinstance(value, Real | Tensor) and not isinstance(value, bool) else no_number
        raise wrong(f"{name} is {brief(value)}; give a positive number")
    return number


def require_tensor(name: str, value: Any, *, floating: bool = False) -> None:
    """Raise a TypeError unless ``value`` is a tensor, of floating point if asked for."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {kind(value)}; give a tensor: torch.as_tensor({name})")
    if floating and not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}; give floating point: {name}.float()")


def require_rows(name: str, value: Any, event_shape: torch.Size, why: str) -> None:
    """Raise an error unless ``value`` is a tensor whose rows have the shape of one observation."""
    require_tensor(name, value)
    if value.shape[1:] != event_shape or value.dim() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but {why} of shape {tuple(event_shape)}; "
            f"give shape (n, {', '.join(map(str, event_shape))})"
        )


def require_path(name: str, path: Any) -> None:
    """Raise a TypeError unless ``path`` can be one."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name} is {brief(path)}; give the path of a folder")


def require_finite(name: str, value: Tensor) -> None:
    """Raise a ValueError unless all of a tensor is finite."""
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite values; give finite ones")


def require_module(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is a module."""
    if not isinstance(value, nn.Module):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"{kind(value)}"
        raise TypeError(f"{name} is {given}; give a torch.nn.Module, so that its parameters are learned")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
