"""Load the data of a study, and say what was read before anything is fitted: in the log, the page and
``run.json``."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_vae.data import DataSet, load
from pyro_vae.data.dataset import STANDARDIZED, FloatArray
from pyro_vae.devices import resolve_device
from pyro_vae.models import likelihoods
from pyro_vae.storage.records import checksum_of_rows
from pyro_vae.study.config import StudyConfig
from pyro_vae.study.costs import check_weights
from pyro_vae.study.pairs import split_data
from pyro_vae.study.program import check_program, source_checksum

Labels = npt.NDArray[Any] | None
"""Of rows, if they have some."""


@dataclass(frozen=True)
class Material:
    """What a study works with."""

    config: StudyConfig
    device: str
    name: str
    """Of the data."""
    train: DataSet
    held_out: DataSet
    checksum: str
    """Of the observations."""
    account: Mapping[str, Any]
    """What was read, and how it was divided."""

    def in_pieces(self) -> "tuple[Material, FloatArray, FloatArray, Labels]":
        """Itself without rows; those to train on, and those held out with their labels: what is sent to a
        worker, as joblib maps or scatters an array that is an argument."""
        parts = (self.train, self.held_out)
        train, held_out = (dataclasses.replace(part, x=part.x[:0], y=None) for part in parts)
        rest = dataclasses.replace(self, train=train, held_out=held_out)
        return rest, np.asarray(self.train.x), np.asarray(self.held_out.x), self.held_out.y

    def with_rows(self, train: FloatArray, held_out: FloatArray, labels: Labels) -> "Material":
        """The reverse; rows to train on need no labels."""
        return dataclasses.replace(
            self,
            train=dataclasses.replace(self.train, x=train),
            held_out=dataclasses.replace(self.held_out, x=held_out, y=labels),
        )


def load_material(config: StudyConfig, device: str | None = None) -> Material:
    """Load and split the data; the device is by default the configuration's. Raises ValueError if the data
    cannot be loaded, there is no such device, or the networks would not fit into memory."""
    resolved = str(resolve_device(config.device if device is None else device))
    everything = load(
        config.data,
        root=config.root,
        likelihood=config.likelihood,
        label=config.label,
        columns=config.columns,
        header=config.header,
        separator=config.separator,
    )
    if config.program is None:
        outputs = likelihoods.get(everything.likelihood, **everything.likelihood_args).outputs
        check_weights(config.hidden, config.latent_dim, everything.x.shape[1], outputs)
    else:  # whose model explains the data as they are
        own = f"of {config.program}"
        everything = dataclasses.replace(everything, likelihood=own, likelihood_args={}, why="")
    parts = split_data(everything, config.held_out)
    account = account_of(everything, *parts)
    if config.program is not None:
        shared = [check_program(config.program, scale, parts[0].x) for scale in config.scales]
        account["shared"] = sorted(set().union(*shared))
        account["program"] = source_checksum(config.program)
    return Material(config, resolved, everything.name, *parts, checksum_of_rows(everything.x), account)


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
        "notes": list(everything.notes),
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
    if account.get("shared"):
        sentence += (
            f"; all observations share the latents {', '.join(account['shared'])}, so held-out ones are "
            "measured given draws of these from the guide"
        )
    return sentence
