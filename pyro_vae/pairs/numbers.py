"""Tell which integers of the data are meant as numbers, and not as indices or labels."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from pyro_vae.arrays import subsets
from pyro_vae.batches.batches import Batch
from pyro_vae.batches.rows import plain_parts
from pyro_vae.batches.streams import is_stream
from pyro_vae.pairs.isolation import Program, empty_store, isolated, modules_of
from pyro_vae.pairs.running import run_once


def meant_as_floats(
    model: Program, guide: Program, batch: Batch, dtype: torch.dtype, *, seed: int
) -> list[int]:
    """The integer parts of a batch that a pair only takes as floating point: what an encoder's linear layer
    sees, but no index into an embedding.

    Parameters
    ----------
    model, guide
        The pair; it runs on the batch until it does so without an error.
    batch
        Some of the data.
    dtype
        Of floating point.
    seed
        Of the runs: lazy parameters are made in the one that succeeds, and are those of a fit of this seed.

    Returns
    -------
    list
        Positions of the parts; empty where all can stay what they are, or nothing helps.
    """
    whole = [i for i, part in enumerate(batch) if not part.is_floating_point()]
    if not whole:
        return []
    device = next((p.device for module in modules_of(model, guide) for p in module.parameters()), None)
    batch = tuple(part.to(device) for part in batch)
    for floats in subsets(whole):
        tried = tuple(part.to(dtype) if i in floats else part for i, part in enumerate(batch))
        with (
            suppress(Exception),  # what is wrong with the pair is told when it is set up
            torch.no_grad(),
            isolated(model, guide, state=empty_store(), seed=seed),
        ):
            run_once(model, guide, tried)
            return list(floats)
    return []


def is_floating(part: Any) -> bool:
    """Whether a tensor or an array is of floating point."""
    return part.dtype.kind == "f" if isinstance(part.dtype, np.dtype) else bool(part.is_floating_point())


def may_hold_integers(data: Any) -> bool:
    """Whether a part of the data is not of floating point, as far as can be seen without reading them."""
    return is_stream(data) or not all(map(is_floating, plain_parts(data)[0]))
