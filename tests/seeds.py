"""``make test SEED=n``: the same tests on other random streams, so that none of them lives by luck.

While a module of tests runs, every seed that a test or the package gives, defaults included, is moved by n.
Doctests show numbers, so they keep theirs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae import devices
from pyro_vae.posterior.simulated import uniformity

SHIFT = int(os.environ.get("SEED") or 0)


def shifted(seed: int) -> int:
    return seed + 1_000_003 * SHIFT


def generator(seed: int = 0) -> torch.Generator:
    """``torch.Generator().manual_seed``, which cannot be reached below."""
    return torch.Generator().manual_seed(shifted(seed))


class _With:
    """Something with other attributes of these names."""

    def __init__(self, of: Any, **others: Any) -> None:
        self._of = of
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


_STREAM = torch.default_generator
_MANUAL_SEED, _RNG, _SEQUENCE = torch.manual_seed, np.random.default_rng, np.random.SeedSequence


def _moved(entropy: Any) -> Any:
    numbers = isinstance(entropy, int | np.integer | Sequence | np.ndarray)
    return [SHIFT, *np.atleast_1d(entropy)] if numbers else entropy


@contextmanager
def _seeded_by(manual_seed: Any, rng: Any, sequence: Any, of_devices: Any) -> Iterator[None]:
    """The same names lead to these inside, and what the package has simulated with other seeds is simulated
    again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", manual_seed)
        patch.setattr(np.random, "default_rng", rng)
        patch.setattr(np.random, "SeedSequence", sequence)
        patch.setattr(devices, "torch", of_devices)
        uniformity._null.cache_clear()
        try:
            yield
        finally:
            uniformity._null.cache_clear()


def every_seed_shifted() -> AbstractContextManager[None]:
    """Seeds of torch's global stream and of NumPy's generators are other ones inside, if n is not 0."""
    if not SHIFT:
        return nullcontext()
    # The package seeds the generator itself, which nobody can patch: it is given another one's name.
    moving = _With(_STREAM, manual_seed=lambda seed: _STREAM.manual_seed(shifted(int(seed))))
    return _seeded_by(
        lambda seed: _MANUAL_SEED(shifted(int(seed))),
        lambda seed=None: _RNG(_moved(seed)),
        lambda entropy=None: _SEQUENCE(_moved(entropy)),
        _With(torch, default_generator=moving),
    )


def no_seed_shifted() -> AbstractContextManager[None]:
    """Seeds are what is given inside, for what is compared with processes of the command."""
    return _seeded_by(_MANUAL_SEED, _RNG, _SEQUENCE, torch) if SHIFT else nullcontext()
