"""A process that fits for days: nothing of a fit stays when it is gone."""

import gc
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from pyro_vae.svi import fit
from tests.svi.engines.native.cases import needs_compiler
from tests.svi.pairs import PAIRS, observations

KINDS = (Tensor, nn.Module, fx.Graph, fx.Node)


def alive() -> Counter[str]:
    """What there is of each kind, and of files and threads."""
    gc.collect()
    counts = Counter[str]()
    for found, n in Counter(map(type, gc.get_objects())).items():
        counts.update({kind.__name__: n for kind in KINDS if issubclass(found, kind)})
    descriptors = Path("/proc/self/fd")
    counts["descriptors"] = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    counts["threads"] = threading.active_count()
    return counts


@pytest.mark.parametrize("engine", ["eager", "captured", pytest.param("native", marks=needs_compiler)])
def test_fits_leave_nothing_behind(engine: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)

    def once(seed: int) -> None:
        pair = PAIRS["normal"]()
        fitted = fit(
            pair.model, pair.guide, observations(32), steps=6, seed=seed, engine=engine, progress=False
        )
        assert fitted.engine == engine
        fitted.save(tmp_path / "fit")

    for seed in range(2):  # what is made once for the process
        once(seed)
    before = alive()
    for seed in range(3):
        once(seed)
    assert alive() - before == Counter()
    assert os.listdir(tmp_path) == ["fit"]
