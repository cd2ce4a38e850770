"""The path derivative: unbiased, and without noise at the posterior."""

import math
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_vae.guides.normal import LogScaleNormal
from pyro_vae.pairs.isolation import isolated
from pyro_vae.svi import ELBO, STL, fit
from tests.svi.pairs import PAIRS, Pair, observations

X = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_guide(make: Callable[[Tensor, Tensor], object]) -> tuple[Callable[[Tensor], None], list[Tensor]]:
    loc = (X / 2).requires_grad_(True)
    log_scale = torch.full_like(X, -0.5 * math.log(2)).requires_grad_(True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(loc, log_scale))

    return guide, [loc, log_scale]


@pytest.mark.parametrize(
    "make", [LogScaleNormal, lambda loc, log_scale: dist.Normal(loc, log_scale.exp())], ids=["log", "plain"]
)
def test_the_gradient_is_zero_at_every_draw_from_the_posterior(
    make: Callable[[Tensor, Tensor], object],
) -> None:
    guide, leaves = exact_guide(make)
    for _ in range(5):
        for gradient in torch.autograd.grad(STL().estimate(model, guide, (X,)).surrogate, leaves):
            torch.testing.assert_close(gradient, torch.zeros(3), rtol=0, atol=1e-13)
    noisy = torch.autograd.grad(ELBO(analytic_kl=False).estimate(model, guide, (X,)).surrogate, leaves)
    assert float(noisy[0].abs().max()) > 0.1


@pytest.mark.parametrize("name", ["normal", "scaled", "rescaled to 100", "flow", "gamma", "drawn bottom-up"])
def test_the_gradient_is_unbiased(name: str) -> None:
    """The difference to the ELBO's gradient is a score, whose mean is 0, in every coordinate."""
    pair, x = PAIRS[name](), observations(4).repeat(20, 1)
    module = getattr(pair.guide, "__self__", pair.guide)
    leaves = list(module.parameters())
    draws = 60  # of the sum over twenty copies
    with isolated(pair.model, pair.guide, seed=1), warnings.catch_warnings():
        differences = []
        for seed in range(draws):
            gradients = []
            for objective in (STL(), ELBO(analytic_kl=False)):
                torch.manual_seed(seed)
                surrogate = objective.estimate(pair.model, pair.guide, (x,)).surrogate
                parts = torch.autograd.grad(surrogate, leaves, allow_unused=True)
                gradients.append(torch.cat([p.flatten() for p in parts if p is not None]))
            differences.append(gradients[0] - gradients[1])
    stacked = torch.stack(differences)
    z = stacked.mean(0) / (stacked.std(0) / math.sqrt(draws) + 1e-12)
    assert float(stacked.abs().max()) > 1e-3
    assert float(z.abs().max()) < 4.5


def test_the_loss_is_that_of_the_elbo_with_sampled_kl() -> None:
    pair, x = PAIRS["normal"](), observations()
    estimates = []
    for objective in (STL(2), ELBO(2, analytic_kl=False)):
        torch.manual_seed(0)
        estimates.append(objective.estimate(pair.model, pair.guide, (x,), 0.3))
    for name in ("loss", "kl", "reconstruction"):
        torch.testing.assert_close(getattr(estimates[0], name), getattr(estimates[1], name))


def test_autoguides_keep_their_jacobian() -> None:
    """LogNormal(1, 1): the guide can be exact, and its gradient is zero only if the Jacobian is path."""

    def model() -> None:
        pyro.sample("s", dist.LogNormal(1.0, 1.0))

    guide = AutoNormal(model, init_scale=1.0)
    guide()
    with torch.no_grad():
        guide.locs.s.fill_(1.0)
    for gradient in torch.autograd.grad(STL().estimate(model, guide, ()).surrogate, list(guide.parameters())):
        torch.testing.assert_close(gradient, torch.zeros(()), rtol=0, atol=1e-12)


def test_latents_without_a_reparameterization_keep_the_score_function() -> None:
    pair, x = PAIRS["score function"](), observations()
    gradients = []
    for objective in (STL(), ELBO(analytic_kl=False)):
        torch.manual_seed(0)
        surrogate = objective.estimate(pair.model, pair.guide, (x,)).surrogate
        gradients.append(torch.autograd.grad(surrogate, list(pair.guide.loc.parameters())))  # type: ignore[attr-defined]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_it_trains_with_warm_up_and_is_captured() -> None:
    x, losses = observations(64), []
    for engine in ("eager", "captured"):
        torch.manual_seed(0)
        pair: Pair = PAIRS["normal"]()
        objective = STL(kl_weight=lambda step: min(1.0, step / 10))
        fitted = fit(
            pair.model, pair.guide, x, objective=objective, engine=engine, lr=1e-2, epochs=20, progress=False
        )
        assert fitted.engine == engine
        losses.append(fitted.history["loss"].values)
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-9)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="give a positive integer"):
        STL(0)
    with pytest.raises(ValueError, match=r"kl_weight is .*; give a finite number"):
        STL(kl_weight=-1.0)
