"""What the arguments of guides must be."""

from typing import Any

__all__ = ["positive_integer", "require_model"]


def require_model(model: Any) -> None:
    """Raise a TypeError unless ``model`` can be a Pyro model."""
    if not callable(model):
        raise TypeError(
            f"model must be a Pyro model, a PyroModule or a function, not {type(model).__name__} {model!r:.40}"
        )


def positive_integer(name: str, value: Any) -> int:
    """``value``, or a ValueError that names it.

    >>> positive_integer("rank", 2)
    2
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")
    return value
