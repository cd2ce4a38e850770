"""The CUDA graph against eager CUDA; run on a machine that has one: ``python -m pytest tests/gpu``."""

import pytest
import torch

from pyro_vae.svi import fit
from tests.svi.pairs import PAIRS, observations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_the_graph_learns_what_eager_cuda_learns(max_norm: float | None) -> None:
    """40 rows in batches of 16: two batch shapes, so two graphs."""
    histories = []
    for engine in ("eager", "captured", "auto"):
        torch.manual_seed(0)
        pair = PAIRS["tutorial"]()
        fitted = fit(
            pair.model,
            pair.guide,
            observations(40),
            device="cuda",
            engine=engine,
            batch_size=16,
            epochs=10,
            lr=1e-2,
            max_norm=max_norm,
            progress=False,
        )
        histories.append(fitted.history["loss"].values)
    assert histories[1] == pytest.approx(histories[0], rel=1e-8)
    # A graph advances the generator in steps of its own, so the noise is other noise.
    assert histories[2][-3:].mean() == pytest.approx(histories[0][-3:].mean(), rel=0.2)


def test_noise_is_fresh_at_every_replay() -> None:
    pair = PAIRS["tutorial"]()
    fitted = fit(
        pair.model,
        pair.guide,
        observations(16),
        device="cuda",
        batch_size=16,
        steps=6,
        lr=1e-30,
        progress=False,
    )
    assert len(set(fitted.history["loss"].values.tolist())) == 6
