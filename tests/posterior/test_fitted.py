"""Fits of this library in the diagnostics: modules, plain functions, and guides of unequal training."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, likelihoods
from pyro_vae.posterior import answer, compare, diagnose, from_pyro_svi, inference_gaps, refine
from pyro_vae.posterior.evaluation.preparation import prepare
from pyro_vae.svi import fit


def digits(n=400):
    return torch.tensor(load_digits().data[:n], dtype=torch.float32)


def fitted(epochs, seed, likelihood=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VAE(nn.Linear(4, 64), 4, likelihood or likelihoods.Binomial(16))
        guide = AmortizedNormal(model, nn.Sequential(nn.Linear(64, 16), nn.Tanh()))
    return fit(model, guide, digits(), epochs=epochs, lr=1e-2, seed=seed, engine="eager", progress=False)


@pytest.fixture(autouse=True)
def _the_dtype_of_users(_same_start):
    torch.set_default_dtype(torch.float32)


def test_a_guide_trained_for_a_tenth_of_the_steps_is_found_out():
    """First as one whose weights cannot be believed, and then, refined as advised, by its evidence:
    the posterior of a linear model is a Normal."""
    x = digits()[:100]
    fits = {
        name: [fitted(epochs, seed, likelihoods.Normal()) for seed in range(3)]
        for name, epochs in (("trained", 20), ("a tenth", 2))
    }
    as_fitted = {
        name: [diagnose(f.model, f.guide, x, draws=100) for f in each] for name, each in fits.items()
    }
    assert answer(compare(as_fitted)).startswith("No guide is ahead")
    table = compare({name: [refine(f.model, f.guide, x) for f in each] for name, each in fits.items()})
    assert table.index[0] == "trained"
    assert table["decided"].all()
    assert answer(table).startswith("trained has the higher log evidence: it beats a tenth by")


def test_fits_of_modules_are_evaluated_in_float64_and_stay_as_they_are():
    f = fitted(2, 0)
    before = {name: value.clone() for name, value in f.guide.state_dict().items()}
    pair = prepare(f.model, f.guide, digits()[:5])
    assert (pair.dtype, pair.layout) == (torch.float64, "broadcast")
    tree = from_pyro_svi(f.model, f.guide, digits()[:5], 40, history=f.history)
    assert tree["loss"]["loss"].sizes["step"] == 2 * 4
    gaps = inference_gaps(f.model, f.guide, digits()[:5], draws=100, steps=100)
    assert (gaps["amortization_gap"] > 0).all()
    assert {value.dtype for value in f.guide.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in f.guide.state_dict().items())


def test_fits_of_plain_functions_bring_their_parameters():
    decoder = nn.Linear(2, 64)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 4.0).to_event(1), obs=x)

    def guide(x):
        gain = pyro.param("gain", lambda: torch.zeros(64, 2))
        scale = pyro.param("scale", lambda: torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, scale).to_event(1))

    x = digits()
    untrained = diagnose(model, guide, x[:50], draws=100)["elbo"].mean()
    f = fit(model, guide, x, epochs=30, lr=1e-2, engine="eager", progress=False)
    trained = diagnose(f.model, f.guide, x[:50], draws=100)["elbo"].mean()
    assert trained > untrained + 20
    assert list(pyro.get_param_store()) == []
    np.testing.assert_array_equal(trained, diagnose(f.model, f.guide, x[:50], draws=100)["elbo"].mean())
