import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae.pairs.isolation import empty_store, isolated
from pyro_vae.pairs.parameters import trainable_parameters
from pyro_vae.svi.objectives.elbo import ELBO
from tests.svi.pairs import PAIRS, Pair, bottom_up, observations

CASES = [
    (name, analytic)
    for name in PAIRS
    for analytic in (False, True)
    if not analytic or PAIRS[name]().mean_field
]


def run_once(pair: Pair, x: Tensor) -> None:
    with torch.no_grad():
        pair.guide(x)
        pair.model(x)


@pytest.mark.parametrize(("name", "analytic"), CASES)
def test_loss_and_every_gradient_equal_pyro(name: str, analytic: bool) -> None:
    pair, x = PAIRS[name](), observations()
    pyro_elbo = (TraceMeanField_ELBO if analytic else Trace_ELBO)()
    with isolated(pair.model, pair.guide, state=empty_store(), seed=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's remarks on mean field are not about our estimator
        run_once(pair, x)
        parameters = trainable_parameters(pair.model, pair.guide, pyro.get_param_store().get_state())
        torch.manual_seed(7)
        wanted_loss = pyro_elbo.loss_and_grads(pair.model, pair.guide, x)
        wanted = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters.values()]
        torch.manual_seed(7)
        estimate = ELBO(analytic_kl=analytic).estimate(pair.model, pair.guide, (x,))
        given = torch.autograd.grad(estimate.surrogate, list(parameters.values()), allow_unused=True)
    assert float(estimate.loss.detach()) == pytest.approx(wanted_loss, rel=1e-12)
    for name_, a, b in zip(parameters, given, wanted, strict=True):
        torch.testing.assert_close(
            torch.zeros_like(b) if a is None else a, b, rtol=1e-9, atol=1e-12, msg=name_
        )


def test_terms_add_up_to_the_loss() -> None:
    pair, x = PAIRS["normal"](), observations()
    estimate = ELBO(kl_weight=1.0).estimate(pair.model, pair.guide, (x,), kl_weight=0.25)
    torch.testing.assert_close(estimate.loss, 0.25 * estimate.kl - estimate.reconstruction)
    torch.testing.assert_close(estimate.surrogate, estimate.loss)


def test_analytic_kl_has_no_variance() -> None:
    pair, x = PAIRS["normal"](), observations()
    kls = torch.stack([ELBO().estimate(pair.model, pair.guide, (x,)).kl.detach() for _ in range(5)])
    assert float(kls.std()) == 0.0


def test_particles_average() -> None:
    pair, x = PAIRS["normal"](), observations()
    torch.manual_seed(0)
    one = [ELBO().estimate(pair.model, pair.guide, (x,)).loss for _ in range(4)]
    torch.manual_seed(0)
    four = ELBO(num_particles=4).estimate(pair.model, pair.guide, (x,)).loss
    torch.testing.assert_close(four, torch.stack(one).mean())


def test_a_guide_that_draws_against_the_models_order_gets_the_sampled_kl() -> None:
    """KL(q(z1|x) ‖ p(z1|z2)) holds z2 fixed, but the guide draws z2 given z1: Pyro's mean-field ELBO is
    biased there."""
    pair, x = bottom_up(), observations()
    for layer in (pair.model.__self__.top, pair.model.__self__.q2):  # type: ignore[attr-defined]
        torch.nn.init.constant_(layer.weight, 1.0)

    copies, calls = 25, 60
    many = x.repeat(copies, 1)

    def mean_loss(objective: ELBO) -> tuple[float, float]:
        losses = torch.stack(
            [objective.estimate(pair.model, pair.guide, (many,)).loss.detach() for _ in range(calls)]
        )
        return float(losses.mean()) / copies, float(losses.std()) / copies / math.sqrt(calls)

    with pyro.validation_enabled(False):
        default, se = mean_loss(ELBO())
        sampled, se_sampled = mean_loss(ELBO(analytic_kl=False))
        biased = TraceMeanField_ELBO(num_particles=calls).loss(pair.model, pair.guide, many) / copies
    assert abs(default - sampled) < 4 * math.hypot(se, se_sampled)
    assert abs(biased - sampled) > 10 * se_sampled


def test_constrained_autoguide_sites_keep_their_jacobian() -> None:
    """LogNormal(1, 1) has loc 1; Pyro's mean-field ELBO with AutoNormal says 0, for the KL of a Delta forgets
    its density."""

    def model() -> None:
        pyro.sample("s", dist.LogNormal(1.0, 1.0))

    guide = pyro.infer.autoguide.AutoNormal(model)
    guide()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    for _ in range(800):
        loss = ELBO().estimate(model, guide, ()).surrogate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(guide.locs.s.detach()) == pytest.approx(1.0, abs=0.15)


def test_score_function_gradient_takes_the_kl_weight() -> None:
    """One Bernoulli latent: d/dθ of E_q[loss] by enumeration, at KL weight 0.4."""
    x = torch.tensor([1.3])
    many = x.repeat(100)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    theta = torch.tensor(0.2, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=theta))

    weight, p = 0.4, torch.sigmoid(theta)
    kl = p * (p / 0.3).log() + (1 - p) * ((1 - p) / 0.7).log()
    likelihood = p * dist.Normal(2.0, 1.0).log_prob(x) + (1 - p) * dist.Normal(0.0, 1.0).log_prob(x)
    (exact,) = torch.autograd.grad((weight * kl - likelihood).sum(), theta)
    objective = ELBO(num_particles=40)
    with pyro.validation_enabled(False):
        (total,) = torch.autograd.grad(objective.estimate(model, guide, (many,), weight).surrogate, theta)
    estimated = total / len(many)
    assert float(estimated) == pytest.approx(float(exact), abs=0.04)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_particles_must_be_a_positive_integer(bad: object) -> None:
    with pytest.raises(ValueError, match=r"give a positive integer"):
        ELBO(num_particles=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_kl_weight_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match=r"kl_weight is .*; give a finite number"):
        ELBO(kl_weight=bad)
    with pytest.raises(ValueError, match=r"kl_weight\(3\) is .*; give a finite number"):
        ELBO(kl_weight=lambda step: bad).weight_at(3)


def test_plain_svi_agrees_with_the_loss_after_the_fact() -> None:
    """The loss is a total over the batch, as Pyro's SVI reports it."""
    pair, x = PAIRS["functions"](), observations()
    with pyro.get_param_store().scope():
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
        for _ in range(3):
            svi.step(x)
        torch.manual_seed(1)
        reported = svi.evaluate_loss(x)
        torch.manual_seed(1)
        assert float(ELBO().estimate(pair.model, pair.guide, (x,)).loss.detach()) == pytest.approx(reported)
