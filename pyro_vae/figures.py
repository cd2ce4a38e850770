"""Figures that belong to whoever asked for them: no window, nothing global, and a picture in a notebook."""

import io

from matplotlib.figure import Figure

DPI = 100


class ShownFigure(Figure):
    """A figure that a notebook shows although pyplot, which tells notebooks about figures, never ran.

    >>> ShownFigure()._repr_png_()[:4]
    b'\\x89PNG'
    """

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=DPI, bbox_inches="tight")
        return picture.getvalue()
