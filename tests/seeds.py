"""``make test SEED=n``: the same tests on other random streams, so that none of them lives by luck.

While a module of tests runs, every seed that a test or the package gives, defaults included, is moved by n.
Doctests show numbers, so they keep theirs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

SHIFT = int(os.environ.get("SEED") or 0)


def shifted(seed: int) -> int:
    return seed + 1_000_003 * SHIFT


def generator(seed: int = 0) -> torch.Generator:
    """``torch.Generator().manual_seed``, which cannot be reached below."""
    return torch.Generator().manual_seed(shifted(seed))


@contextmanager
def every_seed_shifted() -> Iterator[None]:
    """Seeds of torch's global stream and of NumPy's generators are other ones inside, if n is not 0."""
    manual_seed, rng, sequence = torch.manual_seed, np.random.default_rng, np.random.SeedSequence

    def moved(entropy: Any) -> Any:
        return None if entropy is None else [SHIFT, *np.atleast_1d(entropy)]

    with pytest.MonkeyPatch.context() as patch:
        if SHIFT:
            patch.setattr(torch, "manual_seed", lambda seed: manual_seed(shifted(int(seed))))
            patch.setattr(np.random, "default_rng", lambda seed=None: rng(moved(seed)))
            patch.setattr(np.random, "SeedSequence", lambda entropy=None: sequence(moved(entropy)))
        yield
