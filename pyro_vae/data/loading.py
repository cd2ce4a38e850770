"""`load`: a data set by name or by path."""

__all__ = ["load"]

import numpy as np

from pyro_vae.data.dataset import DataSet


def load(name_or_path: str) -> DataSet:
    """A data set by name ("digits").

    Examples
    --------
    >>> load("digits").x.shape
    (1797, 64)
    """
    if name_or_path != "digits":
        raise ValueError(f"No data set is called {name_or_path!r}. The names are digits.")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return DataSet(
        "digits", bunch.data.astype(np.float32), bunch.target, "binomial", {"total_count": 16}, (8, 8)
    )
