"""How all figures look: a guide's colour, bare axes, a width that a narrow screen can still read."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes

# Okabe and Ito (2008), distinguishable with any colour vision; without the yellow, which is too pale for
# lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
REFINED = ", refined"
"""What the name of a guide ends in whose posteriors are refined."""
WIDTH = 7.0
"""Inches: wider figures have unreadable text on a telephone."""


def guide_colors(names: Sequence[str]) -> dict[str, str]:
    """The colour of each guide; the refined one has that of its encoder.

    >>> guide_colors(["logvar", "logvar, refined", "softplus"])
    {'logvar': '#0072B2', 'logvar, refined': '#0072B2', 'softplus': '#D55E00'}
    """
    guides = list(dict.fromkeys(str(name).removesuffix(REFINED) for name in names))
    return {str(name): COLORS[guides.index(str(name).removesuffix(REFINED)) % len(COLORS)] for name in names}


def by_name(given: Any) -> Mapping[str, Any]:
    """What a figure draws, by guide; something given alone has no name.

    >>> list(by_name(xr.Dataset()))
    ['']
    """
    return given if isinstance(given, Mapping) and not isinstance(given, xr.Dataset) else {"": given}


def bare(axes: Axes) -> None:
    """Take the frame's upper and right side away."""
    axes.spines[["top", "right"]].set_visible(False)
