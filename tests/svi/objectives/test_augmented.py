"""Batches that are drawn anew at every step: every engine draws the same."""

import pytest
import torch
from torch import nn

from pyro_vae import fit
from pyro_vae.data import DynamicBinarization
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.svi import ELBO, IWAE, Fit
from pyro_vae.svi.objectives.augmented import Augmented
from tests.svi.engines.native.cases import needs_compiler

GREY = torch.linspace(0.05, 0.95, 40 * 6).reshape(40, 6)


def fitted(engine: str, objective: object = None, **options: object) -> Fit:
    torch.manual_seed(0)
    model = VAE(nn.Linear(2, 6), 2, "bernoulli")
    guide = AmortizedNormal(model, nn.Linear(6, 5))
    return fit(
        model,
        guide,
        DynamicBinarization(GREY),
        epochs=3,
        batch_size=16,
        engine=engine,
        objective=objective,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("objective", [None, IWAE(3)], ids=["ELBO", "IWAE"])
@pytest.mark.parametrize("engine", ["captured", pytest.param("native", marks=needs_compiler)])
def test_every_engine_takes_the_same_steps(engine: str, objective: object) -> None:
    wanted, given = fitted("eager", objective), fitted(engine, objective)
    assert given.engine == engine
    torch.testing.assert_close(
        torch.as_tensor(given.history["loss"].values), torch.as_tensor(wanted.history["loss"].values)
    )


def test_batches_differ_from_pass_to_pass() -> None:
    """With no rate worth the name the losses of two passes differ by what was drawn alone."""
    losses = fitted("captured", lr=1e-30).history["loss"].values
    assert len(set(losses.tolist())) == len(losses)


def test_binary_data_are_drawn_as_they_are() -> None:
    binary = (GREY > 0.5).float()
    (drawn,) = Augmented(ELBO(), DynamicBinarization.draw).batch((binary,))
    assert torch.equal(drawn, binary)


def test_validation_data_are_drawn_by_whoever_gives_them() -> None:
    with pytest.raises(ValueError, match=r"validation holds 0\.05 .* binarize"):
        fitted("captured", validation=GREY[:8])
