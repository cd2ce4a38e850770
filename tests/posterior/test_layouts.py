"""Where the plate of the observations lies is the user's choice: the same numbers come out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pyro_vae
from pyro_vae.guides import AmortizedNormal

NOISE, REPEATS = 0.7, 5
X = torch.randn(12, 1, generator=torch.Generator().manual_seed(0)) + NOISE * torch.randn(
    12, REPEATS, generator=torch.Generator().manual_seed(1)
)


def outer(x: Tensor, wide: bool = False) -> None:
    """Observations at dim −2, their repeats at dim −1."""
    with pyro.plate("groups", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("repeats", REPEATS, dim=-1):
            width = pyro.sample("width", dist.LogNormal(torch.tensor(0.0), 0.3)) if wide else 1.0
            pyro.sample("x", dist.Normal(z, NOISE * width), obs=x)


def inner(x: Tensor, wide: bool = False) -> None:
    """Observations at dim −1, their repeats at dim −2."""
    with pyro.plate("groups", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("repeats", REPEATS, dim=-2):
            width = pyro.sample("width", dist.LogNormal(torch.tensor(0.0), 0.3)) if wide else 1.0
            pyro.sample("x", dist.Normal(z, NOISE * width), obs=x.mT)


def wide_outer(x: Tensor) -> None:
    outer(x, wide=True)


def wide_inner(x: Tensor) -> None:
    inner(x, wide=True)


def by_hand(x: Tensor) -> None:
    with pyro.plate("groups", len(x), dim=-2):
        pyro.sample("z", dist.Normal(0.5 * x.mean(-1, keepdim=True), 0.3))


def encoder_guide(model: Callable[..., Any]) -> AmortizedNormal:
    torch.manual_seed(0)
    return AmortizedNormal(model, nn.Linear(REPEATS, 8))


PAIRS = {
    "outer": lambda: (outer, encoder_guide(outer)),
    "outer, by hand": lambda: (outer, by_hand),
    "inner": lambda: (inner, encoder_guide(inner)),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_every_diagnostic_of_an_exact_posterior(layout: str) -> None:
    model, guide = PAIRS[layout]()
    covariance = NOISE**2 * np.eye(REPEATS) + 1
    evidence = stats.multivariate_normal(np.zeros(REPEATS), covariance).logpdf(X.numpy())
    precision = 1 + REPEATS / NOISE**2
    refined = pyro_vae.refine(model, guide, X)
    np.testing.assert_allclose(refined.elbo, evidence, atol=1e-4)
    np.testing.assert_allclose(
        refined.posterior().mean.reshape(-1), X.sum(-1) / NOISE**2 / precision, atol=1e-4
    )
    np.testing.assert_allclose(refined.posterior().stddev.reshape(-1), precision**-0.5, atol=1e-4)
    report = pyro_vae.diagnose(model, guide, X, refined=True)
    assert (abs(report["log_evidence"] - evidence) <= 4.5 * report["log_evidence_se"] + 1e-4).all()
    repaired = pyro_vae.posterior.repair(model, guide, X[:4])
    assert repaired["repair"]["believable"].all()
    gaps = pyro_vae.posterior.inference_gaps(model, guide, X[:4])
    np.testing.assert_allclose(gaps["elbo_local"], evidence[:4], atol=1e-3)
    calibration = pyro_vae.posterior.calibrate(model, guide, data=X, n=100)
    assert calibration.sizes["latent"] == 1


def test_latents_in_the_inner_plate_too() -> None:
    found = [pyro_vae.refine(model, encoder_guide(model), X) for model in (wide_outer, wide_inner)]
    np.testing.assert_allclose(found[0].elbo, found[1].elbo, atol=1e-3)
    for model in (wide_outer, wide_inner):
        repaired = pyro_vae.posterior.repair(model, encoder_guide(model), X[:3])
        assert repaired["posterior"]["width"].shape[-2:] == (3, REPEATS)
    gaps = pyro_vae.posterior.inference_gaps(wide_outer, encoder_guide(wide_outer), X[:3])
    report = pyro_vae.diagnose(wide_inner, encoder_guide(wide_inner), X[:3], refined=True)
    error = np.hypot(gaps["log_evidence_se"], report["log_evidence_se"])
    assert (abs(gaps["log_evidence"] - report["log_evidence"]) <= 4.5 * error).all()
    with pytest.raises(ValueError, match=r"'width' lies in several plates.*ask repair"):
        pyro_vae.posterior.inference_gaps(wide_inner, encoder_guide(wide_inner), X[:3])
