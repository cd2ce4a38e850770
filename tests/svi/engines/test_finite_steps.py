"""Under every map of the library a fit at lr 1e-2 meets no number that is not finite: 100 seeds, counted."""

import numpy as np
import pytest
import torch

from pyro_vae import data, scales, sweep
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

SEEDS = 100
EPOCHS = 5
BATCH_SIZE = 128


@pytest.mark.slow
@pytest.mark.parametrize("scale", scales.names())
def test_100_seeds_of_the_digits_take_no_step_that_is_not_finite(scale: str) -> None:
    torch.set_default_dtype(torch.float32)
    digits = data.load("digits")

    def make_pair() -> tuple[VAE, AmortizedNormal]:
        likelihood = likelihoods.get(digits.likelihood, **digits.likelihood_args)
        model = VAE(MLPDecoder(8, (64,), 64), 8, likelihood)
        return model, AmortizedNormal(model, MLPEncoder(64, (64,)), scale=scale)

    fits = sweep(
        make_pair, range(SEEDS), digits.x, epochs=EPOCHS, batch_size=BATCH_SIZE, lr=1e-2, progress=False
    )
    taken = sum(fitted.history.sizes["step"] for fitted in fits)
    assert taken == SEEDS * EPOCHS * -(-len(digits) // BATCH_SIZE)
    assert sum(int(fitted.history["nonfinite"].sum()) for fitted in fits) == 0
    losses = np.stack([fitted.history["loss"].values for fitted in fits])
    assert np.isfinite(losses).all()
    assert (losses[:, -15:].mean(1) < losses[:, :15].mean(1)).all()  # and every seed learns
