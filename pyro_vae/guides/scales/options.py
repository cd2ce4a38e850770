"""What the options of scale maps must be."""

import math

__all__ = ["low_and_high", "positive_number"]


def positive_number(owner: str, name: str, value: float) -> float:
    """``value`` as a float, if it is positive and finite.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not positive, or not finite.
    """
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{owner}: {name} must be a number; got {value!r}.") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{owner}: {name} must be positive and finite; got {number:g}.")
    return number


def low_and_high(owner: str, low: float, high: float) -> tuple[float, float]:
    """Both as floats, if 0 < low < high < ∞.

    Raises
    ------
    TypeError
        If one is not a number.
    ValueError
        If one is not positive and finite, or low is not less than high.
    """
    low, high = positive_number(owner, "low", low), positive_number(owner, "high", high)
    if not low < high:
        raise ValueError(f"{owner}: low must be less than high; got low={low:g} and high={high:g}.")
    return low, high
