"""``lr_multiplier="matched"``: log variance and log standard deviation become one and the same fit."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.svi import fit


def log_scales(scale: str, lr_multiplier: str | None) -> Tensor:
    """log σ of 20 images after each of 25 epochs (500 steps of Adam) on the digits."""
    images = torch.as_tensor(load_digits().data[:1280])
    torch.manual_seed(0)
    model = VAE(MLPDecoder(8, [32], 64), 8, likelihoods.Binomial(16))
    guide = AmortizedNormal(model, MLPEncoder(64, [32]), scale=scale)
    guide.posterior(images[:1])
    trajectory: list[Tensor] = []

    def note(_: object) -> None:
        with torch.no_grad():
            trajectory.append(guide.local_parameters(images[:20])["log_scale"])

    fit(
        model,
        guide,
        images,
        epochs=25,
        batch_size=64,
        lr_multiplier=lr_multiplier,
        progress=False,
        callbacks=[note],
    )
    return torch.stack(trajectory)


def test_logvar_and_logstd_are_the_same_fit_at_matched_rates_and_not_at_equal_ones() -> None:
    logvar, logstd = log_scales("logvar", "matched"), log_scales("logstd", "matched")
    assert float((logstd[-1] - logstd[0]).abs().max()) > 0.3  # they go somewhere
    torch.testing.assert_close(logvar, logstd, rtol=0, atol=1e-6)
    at_equal_rates = log_scales("logvar", None)
    torch.testing.assert_close(log_scales("logstd", None), logstd, rtol=0, atol=1e-6)  # its slope is 1
    difference = float((at_equal_rates - logstd).abs().max())
    assert difference == pytest.approx(0.3, abs=0.2)
