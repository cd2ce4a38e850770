"""What the arguments of models and networks must be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "positive_integer",
    "positive_integers",
    "require_finite",
    "require_module",
    "require_program",
    "require_rows",
    "require_tensor",
]


def positive_integer(name: str, value: Any) -> int:
    """``value``, or a ValueError that names it.

    >>> positive_integer("latent_dim", 8)
    8
    """
    if not _is_positive_integer(value):
        raise ValueError(f"{name}={value!r}: it must be a positive integer.")
    number: int = value
    return number


def positive_integers(name: str, values: Any) -> tuple[int, ...]:
    """A sequence of sizes as a tuple, or a ValueError that names it.

    >>> positive_integers("hidden", [64, 32])
    (64, 32)
    """
    if not isinstance(values, Sequence) or not all(map(_is_positive_integer, values)):
        one = f", such as [{values}]" if _is_positive_integer(values) else ""
        raise ValueError(f"{name}={values!r}: it must be a sequence of positive integers{one}.")
    return tuple(values)


def require_tensor(name: str, value: Any, *, floating: bool = False) -> None:
    """Raise a TypeError unless ``value`` is a tensor, of floating point if asked for."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a {type(value).__name__} and must be a tensor: give torch.as_tensor({name})."
        )
    if floating and not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype} and must be of floats: give {name}.float().")


def require_rows(name: str, value: Any, event_shape: torch.Size, why: str) -> None:
    """Raise an error unless ``value`` is a tensor whose rows have the shape of one observation."""
    require_tensor(name, value)
    if value.shape[1:] != event_shape or value.dim() == 0:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but {why} of shape {tuple(event_shape)}: "
            f"{name} needs shape (n, {', '.join(map(str, event_shape))})."
        )


def require_finite(name: str, value: Tensor) -> None:
    """Raise a ValueError unless all of a tensor is finite."""
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite values: it must be finite.")


def require_module(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is a module."""
    if not isinstance(value, nn.Module):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} is {given} and must be a torch.nn.Module, so that its parameters are learned.")


def require_program(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` can be a Pyro program."""
    if not callable(value):
        raise TypeError(f"{name}={value!r}: it must be a Pyro program, a PyroModule or a function.")


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
