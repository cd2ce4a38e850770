"""Rényi's bounds and the importance-weighted one: closed forms on a Gaussian, and Pyro's own estimator."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from pyro_vae.pairs.isolation import empty_store, isolated
from pyro_vae.pairs.parameters import trainable_parameters
from pyro_vae.svi import ELBO, IWAE, Renyi, fit
from tests import seeds
from tests.svi.pairs import PAIRS, observations

X = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def prior_as_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def log_evidence(x: Tensor) -> float:
    return float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum())


def mean_bound(draws: int, repeats: int = 20_000) -> float:
    """The expected bound on X, averaged over copies of X: all in one plate."""
    with pyro.validation_enabled(False):
        loss = IWAE(draws).estimate(model, prior_as_guide, (X.repeat(repeats),)).loss
    return -float(loss) / repeats


def test_the_bound_rises_with_the_draws_to_the_log_evidence() -> None:
    bounds = [mean_bound(k) for k in (1, 4, 16, 64)]
    elbo = float((-0.5 * math.log(2 * math.pi) - 0.5 * ((X**2) + 1)).sum())  # E_p(z) log N(x; z, 1)
    assert bounds[0] == pytest.approx(elbo, abs=0.05)
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(log_evidence(X), abs=0.02)
    assert bounds[-1] < log_evidence(X)


@pytest.mark.parametrize("objective", [IWAE(3), Renyi(0.5, 2), Renyi(-1.0, 2), Renyi(1.0, 2)])
def test_an_exact_guide_gives_the_evidence_at_every_draw(objective: Renyi) -> None:
    def posterior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    estimate = objective.estimate(model, posterior, (X,))
    assert float(estimate.loss) == pytest.approx(-log_evidence(X), abs=1e-12)
    assert float(estimate.kl - estimate.reconstruction) == pytest.approx(-log_evidence(X), abs=1e-12)


def test_order_zero_is_the_importance_weighted_bound_and_order_one_the_elbo() -> None:
    losses = []
    for objective in (Renyi(0.0, 4), IWAE(4), Renyi(1.0, 4), ELBO(4, analytic_kl=False), Renyi(1 - 1e-7, 4)):
        torch.manual_seed(0)
        losses.append(float(objective.estimate(model, prior_as_guide, (X,)).loss))
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[3], rel=1e-12)
    assert losses[4] == pytest.approx(losses[3], rel=1e-5)


def test_a_higher_order_is_a_lower_bound() -> None:
    losses = []
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        torch.manual_seed(0)
        losses.append(float(Renyi(alpha, 5).estimate(model, prior_as_guide, (X,)).loss))
    assert losses == sorted(losses)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["normal", "full covariance", "gamma", "AutoNormal", "masked, no closed KL"])
def test_loss_and_every_gradient_equal_pyro(name: str, alpha: float) -> None:
    pair, x = PAIRS[name](), observations()
    with isolated(pair.model, pair.guide, state=empty_store(), seed=3), torch.no_grad():
        pair.guide(x)
        pair.model(x)
        parameters = trainable_parameters(pair.model, pair.guide, pyro.get_param_store().get_state())
        with torch.enable_grad():
            torch.manual_seed(7)
            wanted_loss = RenyiELBO(alpha, 3).loss_and_grads(pair.model, pair.guide, x)
            wanted = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters.values()]
            torch.manual_seed(7)
            estimate = Renyi(alpha, 3).estimate(pair.model, pair.guide, (x,))
            given = torch.autograd.grad(estimate.surrogate, list(parameters.values()), allow_unused=True)
    assert float(estimate.loss.detach()) == pytest.approx(wanted_loss, rel=1e-12)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=1e-8, atol=1e-11)


def test_one_draw_is_the_elbo_with_its_gradient_even_without_a_reparameterization() -> None:
    pair, x = PAIRS["score function"](), observations()
    gradients = []
    for objective in (IWAE(1), ELBO(analytic_kl=False)):
        torch.manual_seed(0)
        surrogate = objective.estimate(pair.model, pair.guide, (x,)).surrogate
        gradients.append(torch.autograd.grad(surrogate, list(pair.model.parameters())))  # type: ignore[attr-defined]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_the_score_function_gradient_is_unbiased() -> None:
    """Two draws of one Bernoulli latent: the bound's expectation and its derivative by enumeration."""
    x = torch.tensor([1.3])
    theta = torch.tensor(0.2, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Bernoulli(logits=theta))

    q = torch.stack([torch.sigmoid(-theta), torch.sigmoid(theta)])
    p = torch.tensor([0.7, 0.3]) * dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(x).exp()
    w = p / q
    bound = (q[:, None] * q * torch.log((w[:, None] + w) / 2)).sum()
    (exact,) = torch.autograd.grad(-bound, theta)
    with pyro.validation_enabled(False):
        draws = torch.stack(
            [
                torch.autograd.grad(IWAE(2).estimate(model, guide, (x,)).surrogate, theta)[0]
                for _ in range(1000)
            ]
        )
    assert abs(float(draws.mean()) - float(exact)) < 4 * float(draws.std()) / math.sqrt(1000)


def test_subsampling_rescales_the_bound_and_not_the_weights() -> None:
    draws = torch.randn(4, 3, generator=seeds.generator(0))

    def subsampled(size: int) -> float:
        eps = iter(draws)

        def model(x: Tensor) -> None:
            with pyro.plate("data", size, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", size, subsample_size=len(x)):
                pyro.sample("z", dist.Normal(next(eps), 1e-60))  # as good as given

        return float(IWAE(4).estimate(model, guide, (X,)).loss)

    assert subsampled(30) == pytest.approx(10 * subsampled(3), rel=1e-12)


def test_a_global_latent_makes_one_joint_weight() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))

    torch.manual_seed(0)
    loss = float(IWAE(5).estimate(model, guide, (X,)).loss)
    torch.manual_seed(0)
    z = torch.stack([torch.randn(()) for _ in range(5)])
    joint = dist.Normal(z[:, None], 1.0).log_prob(X).sum(-1)
    assert loss == pytest.approx(float(math.log(5) - torch.logsumexp(joint, 0)), rel=1e-12)


@pytest.mark.parametrize("objective", [IWAE(4), Renyi(0.5, 3)], ids=str)
def test_it_trains_and_is_captured(objective: Renyi) -> None:
    x, losses = observations(64), []
    for engine in ("eager", "captured"):
        torch.manual_seed(0)
        pair = PAIRS["normal"]()
        fitted = fit(
            pair.model, pair.guide, x, objective=objective, engine=engine, lr=1e-2, epochs=10, progress=False
        )
        assert fitted.engine == engine
        losses.append(fitted.history["loss"].values)
    assert losses[0][-1] < losses[0][0]
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-9)


@pytest.mark.parametrize("bad", [0, 1.5, True])
def test_draws_must_be_a_positive_integer(bad: object) -> None:
    with pytest.raises(ValueError, match="give a positive integer"):
        IWAE(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.inf, math.nan, True])
def test_the_order_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"alpha is .*; give a finite number"):
        Renyi(bad, 2)
