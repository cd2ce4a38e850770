"""A data set with what a model must know of it."""

__all__ = ["DataSet", "split"]

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DataSet:
    """Observations and the likelihood that suits them.

    Attributes
    ----------
    name
        Name of the data set, or the stem of the file.
    x
        Observations, float32, (n, features).
    y
        Labels (n,), or None.
    likelihood, likelihood_args
        Name and arguments for ``models.likelihoods.get``.
    image_shape
        (height, width) or (channels, height, width) if a row is an image, else None.
    """

    name: str
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any] | None = None
    likelihood: str = "normal"
    likelihood_args: Mapping[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)


def split(data: DataSet, held_out: float = 0.2, *, seed: int = 0) -> tuple[DataSet, DataSet]:
    """Two disjoint parts at random: training and held-out.

    Examples
    --------
    >>> train, test = split(DataSet("ramp", np.arange(10, dtype=np.float32)[:, None]), 0.3)
    >>> len(train), len(test)
    (7, 3)
    """
    order = np.random.default_rng(seed).permutation(len(data))
    n_held_out = round(held_out * len(data))

    def part(rows: npt.NDArray[np.intp]) -> DataSet:
        rows = np.sort(rows)
        return dataclasses.replace(data, x=data.x[rows], y=None if data.y is None else data.y[rows])

    return part(order[n_held_out:]), part(order[:n_held_out])
