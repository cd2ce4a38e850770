"""Say what a study has read before anything is fitted: in the log, the page and ``run.json``."""

from collections.abc import Mapping
from typing import Any

from pyro_vae.data import DataSet
from pyro_vae.data.dataset import STANDARDIZED


def account_of(everything: DataSet, train: DataSet, held_out: DataSet) -> dict[str, Any]:
    """What was read and how it was divided, as plain values.

    Examples
    --------
    >>> import numpy as np
    >>> ramp = DataSet("ramp", np.eye(4, 2, dtype="f4"), columns=("a", "b"), why="it was asked for")
    >>> print(told(account_of(ramp, ramp, ramp)))
    ramp: 4 rows, 2 columns (a, b); likelihood normal: it was asked for; 4 rows to train on, 4 held out; ...
    """
    return {
        "name": everything.name,
        "description": everything.description,
        "rows": len(everything),
        "rows_dropped": 0,
        "features": int(everything.x.shape[1]),
        "columns": None if everything.columns is None else list(everything.columns),
        "left_out": dict(everything.left_out),
        "likelihood": everything.likelihood,
        "why": everything.why,
        "train": len(train),
        "held_out": len(held_out),
        "standardized": everything.likelihood in STANDARDIZED,
    }


def told(account: Mapping[str, Any]) -> str:
    """The account in a sentence."""
    sentence = (
        f"{account['name']}: {account['description']}; {account['train']} rows to train on, "
        f"{account['held_out']} held out; {account['rows_dropped'] or 'none'} dropped"
    )
    if account["standardized"]:
        sentence += "; columns in units of their standard deviations"
    return sentence
