"""Densities of counts in diagnostics of programs that are written in float32."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import pyro_vae
from pyro_vae.guides.precision import exact_log_prob

MANY = 3_000_000.0


def counts(dtype):
    """Distributions of counts near three million, made alike in either dtype."""
    rate, half = torch.tensor([MANY, MANY + 2000], dtype=dtype), torch.tensor(0.5, dtype=dtype)
    return {
        "poisson": dist.Poisson(rate),
        "poisson of an event": dist.Poisson(rate).to_event(1),
        "masked": dist.Poisson(rate).mask(torch.tensor([True, False])),
        "zero-inflated": dist.ZeroInflatedPoisson(rate, gate=half),
        "negative binomial": dist.NegativeBinomial(rate, logits=half - half),
        "zero-inflated negative binomial": dist.ZeroInflatedNegativeBinomial(
            rate, logits=half - half, gate_logits=half
        ),
        "gamma-poisson": dist.GammaPoisson(rate, half + half),
        "binomial": dist.Binomial(2 * rate, probs=half),
        "beta-binomial": dist.BetaBinomial(rate, rate, total_count=2 * rate),
        "mixture": dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=dtype)), dist.Poisson(rate)),
    }


@pytest.mark.parametrize("name", list(counts(torch.float64)))
def test_counts_of_float32_programs_have_the_density_of_float64(name):
    value = torch.tensor([MANY, MANY + 1000])
    if name == "mixture":
        value = value[0]
    exact = counts(torch.float64)[name].log_prob(value)
    rough = counts(torch.float32)[name].log_prob(value.float())
    ours = exact_log_prob(counts(torch.float32)[name], value.float())
    assert_close(ours, exact, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(rough.double(), exact, rtol=1e-6, atol=1e-3)


def test_others_are_left_as_they_are():
    normal = dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0)
    value = torch.tensor(1.0, dtype=torch.float32)
    assert_close(exact_log_prob(normal, value), normal.log_prob(value), rtol=0, atol=0)


def test_the_evidence_of_a_plain_program_of_large_counts_is_exact():
    """One draw of a guide that is the prior: the log weight is the density of the counts."""
    torch.set_default_dtype(torch.float32)
    x = torch.tensor([[MANY], [MANY + 3000], [MANY - 5000]])

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(torch.full((len(x), 1), MANY)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    found = pyro_vae.log_weights(model, guide, x, draws=3)
    exact = stats.poisson.logpmf(x[:, 0].double().numpy(), MANY)
    assert found.transpose("observation", "draw").to_numpy() == pytest.approx(exact[:, None].repeat(3, 1))
