"""Grey images as binary ones: once, or anew at every epoch."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_vae.data.dataset import FloatArray, require_seed


def binarize(intensities: npt.NDArray[np.floating], *, seed: int = 0) -> FloatArray:
    """Each pixel drawn once, 1 with its intensity as probability.

    Parameters
    ----------
    intensities
        Values in [0, 1].
    seed
        The same seed gives the same binary data on every machine.

    Raises
    ------
    TypeError
        If they are no floating-point numbers.
    ValueError
        If an intensity is not in [0, 1].

    References
    ----------
    Salakhutdinov and Murray (2008), On the quantitative analysis of deep belief networks.

    Examples
    --------
    >>> binarize(np.array([0.0, 0.3, 0.9, 1.0])).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    require_seed(seed)
    intensities = np.asarray(_as_intensities(intensities))
    uniform = np.random.default_rng(seed).random(intensities.shape, dtype=np.float32)
    return (uniform < intensities).astype(np.float32)


class DynamicBinarization(Dataset[Tensor]):
    """Grey images that are drawn as binary images anew whenever they are looked at.

    ``fit`` draws each batch inside of the step, so captured, native and recorded steps are as fast as on
    fixed data; a ``DataLoader`` gets a new draw at every access. A model cannot learn one draw by heart, so
    this is how most published numbers on MNIST are trained (Y. Burda, R. Grosse and R. Salakhutdinov, 2016,
    Importance Weighted Autoencoders).

    Parameters
    ----------
    intensities
        (n, ...), values in [0, 1].

    Examples
    --------
    >>> data = DynamicBinarization(torch.full((4, 3), 0.5))
    >>> len(data), data[0].unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
    (4, True)
    """

    def __init__(self, intensities: Tensor | FloatArray) -> None:
        self.intensities = _as_intensities(intensities)

    def __len__(self) -> int:
        return len(self.intensities)

    def __getitem__(self, rows: int | list[int] | Tensor) -> Tensor:
        return self.draw(self.intensities[rows])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What batches are gathered from, before they are drawn."""
        return (self.intensities,)

    @staticmethod
    def draw(intensities: Tensor) -> Tensor:
        """Each pixel 1 with its intensity as probability, else 0."""
        return (torch.rand_like(intensities) < intensities).to(intensities.dtype)


def _as_intensities(values: Any) -> Tensor:
    try:
        intensities = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"intensities is {values!r:.60}; give an array of numbers in [0, 1]") from None
    if not intensities.is_floating_point():
        raise TypeError(
            f"intensities has dtype {intensities.dtype}; give numbers in [0, 1], such as x.float()"
        )
    outside = ~((intensities >= 0) & (intensities <= 1))
    if bool(outside.any()):
        where = tuple(int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"intensities holds {float(intensities[where]):g} at index {where}, and binarizing needs values "
            "in [0, 1]; divide by the largest possible value"
        )
    return intensities
