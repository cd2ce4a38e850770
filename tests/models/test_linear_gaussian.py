import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.decomposition import PCA
from torch.testing import assert_close

from pyro_vae.guides import AmortizedMultivariateNormal, AmortizedNormal
from pyro_vae.models import PPCA, MLPEncoder

SMOOTH_MAPS = ["logvar", "logstd", "softplus", "softplus-var", "explinear", "stdplus"]


def random_model(n_features=6, latent_dim=3):
    return PPCA(torch.randn(n_features, latent_dim), torch.randn(n_features), 0.7)


def draws_of_x(model, n):
    return poutine.uncondition(model)(torch.zeros(n, len(model.loc)))


@pytest.mark.parametrize("load", [load_digits, load_iris, load_breast_cancer])
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_fit_exact_equals_scikit_learn(load, latent_dim):
    data = load().data
    ours = PPCA.fit_exact(torch.from_numpy(data), latent_dim)
    theirs = PCA(latent_dim, svd_solver="full").fit(data)
    assert ours.noise_scale.item() ** 2 == pytest.approx(theirs.noise_variance_, rel=1e-6)
    assert ours.log_evidence(torch.from_numpy(data)).mean().item() == pytest.approx(
        theirs.score(data), rel=1e-6
    )
    covariance = ours.weight @ ours.weight.mT + ours.noise_scale**2 * torch.eye(data.shape[1])
    np.testing.assert_allclose(covariance, theirs.get_covariance(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("load", [load_digits, load_iris])
def test_fit_exact_without_correction_is_the_maximum_of_the_likelihood(load):
    x = torch.from_numpy(load().data)
    best = PPCA.fit_exact(x, 2, ddof=0)
    evidence = best.log_evidence(x).mean()
    assert evidence > PPCA.fit_exact(x, 2).log_evidence(x).mean()
    for _ in range(10):
        step = 1e-3
        other = PPCA(
            best.weight + step * torch.randn_like(best.weight),
            best.loc + step * torch.randn_like(best.loc),
            best.noise_scale * (1 + step * torch.randn(())),
        )
        assert other.log_evidence(x).mean() < evidence


def test_fit_exact_recovers_a_model_from_its_draws():
    true = PPCA(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), torch.arange(4.0), 0.5)
    fitted = PPCA.fit_exact(draws_of_x(true, 200_000), 2)
    assert_close(fitted.loc, true.loc, atol=0.02, rtol=0)
    assert_close(fitted.noise_scale, true.noise_scale, atol=0.01, rtol=0)
    assert_close(fitted.weight, true.weight, atol=0.03, rtol=0)


def test_fit_exact_keeps_dtype_and_gives_a_diagonal_posterior():
    x = torch.randn(50, 5)
    assert PPCA.fit_exact(x.float(), 2).weight.dtype == torch.float32
    precision = PPCA.fit_exact(x, 3).posterior(x[:1]).precision_matrix[0]
    assert_close(precision, precision.diagonal().diag())


def test_posterior_and_evidence_equal_gaussian_conditioning():
    """Brute force: the joint of (z, x) is Gaussian; condition and marginalize it."""
    model = random_model()
    d, q = model.weight.shape
    x = torch.randn(7, d)
    covariance = torch.zeros(q + d, q + d)
    covariance[:q, :q] = torch.eye(q)
    covariance[:q, q:] = model.weight.mT
    covariance[q:, :q] = model.weight
    covariance[q:, q:] = model.weight @ model.weight.mT + model.noise_scale**2 * torch.eye(d)
    gain = covariance[:q, q:] @ torch.linalg.inv(covariance[q:, q:])
    posterior = model.posterior(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((7,), (q,))
    assert_close(posterior.mean, (x - model.loc) @ gain.mT)
    expected = covariance[:q, :q] - gain @ covariance[q:, :q]
    assert_close(posterior.covariance_matrix, expected.expand(7, q, q))
    marginal = dist.MultivariateNormal(model.loc, covariance[q:, q:])
    assert_close(model.log_evidence(x), marginal.log_prob(x))


def test_joint_is_posterior_times_evidence():
    model = random_model()
    x = torch.randn(7, 6)
    z = model.posterior(x).sample()
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    assert_close(joint, model.posterior(x).log_prob(z) + model.log_evidence(x))


def test_rotation_changes_the_posterior_only():
    model = PPCA.fit_exact(torch.from_numpy(load_iris().data), 3)
    x = torch.from_numpy(load_iris().data[:5])
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    turned = model.rotated(rotation)
    assert_close(turned.log_evidence(x), model.log_evidence(x))
    assert_close(turned.posterior(x).mean, model.posterior(x).mean @ rotation)
    assert model.mean_field_gap().item() == pytest.approx(0, abs=1e-10)
    assert turned.mean_field_gap() > 0.1


def test_mean_field_gap_is_what_the_best_mean_field_guide_loses():
    model = random_model()
    x = torch.randn(5, 6)
    exact = model.posterior(x)
    best = dist.Normal(exact.mean, exact.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()).to_event(1)
    kl = torch.distributions.kl_divergence(
        dist.MultivariateNormal(best.mean, torch.diag_embed(best.variance)), exact
    )
    assert_close(kl, model.mean_field_gap().expand(5))


def fitted_elbo(model, guide, x, *, steps):
    """Exact ELBO per observation after full-batch steps of Adam with a falling rate."""
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)(model, guide)
    elbo(x)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo(x).backward()
        optimizer.step()
        schedule.step()
    return gaussian_elbo(model, guide.posterior(x), x)


@torch.no_grad()
def gaussian_elbo(model, q, x):
    """The ELBO of a Gaussian q without any sampling: log p(x) − KL(q‖p(z|x))."""
    covariance = q.covariance_matrix if hasattr(q, "covariance_matrix") else torch.diag_embed(q.variance)
    joint = dist.MultivariateNormal(q.mean, covariance)
    return (model.log_evidence(x) - torch.distributions.kl_divergence(joint, model.posterior(x))).mean()


@pytest.fixture(scope="module")
def small_problem():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    weight = torch.tensor([[1.5, 0.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.0]])
    model = PPCA(weight, torch.tensor([0.0, 1.0, -1.0, 0.0]), 0.8)
    return model, draws_of_x(model, 64)


@pytest.mark.parametrize("scale", SMOOTH_MAPS)
def test_a_linear_encoder_reaches_the_exact_evidence(small_problem, scale):
    model, x = small_problem
    guide = AmortizedNormal(model, MLPEncoder(4, []), scale=scale)
    elbo = fitted_elbo(model, guide, x, steps=250)
    assert elbo.item() == pytest.approx(model.log_evidence(x).mean().item(), abs=0.01)


@pytest.mark.parametrize("scale", ["logvar", "softplus"])
def test_on_a_rotated_model_a_diagonal_guide_loses_the_known_gap(small_problem, scale):
    model, x = small_problem
    turn = torch.tensor([[math.cos(0.8), -math.sin(0.8)], [math.sin(0.8), math.cos(0.8)]])
    rotated = model.rotated(turn)
    guide = AmortizedNormal(rotated, MLPEncoder(4, []), scale=scale)
    loss = rotated.log_evidence(x).mean() - fitted_elbo(rotated, guide, x, steps=250)
    assert rotated.mean_field_gap() > 0.05
    assert loss.item() == pytest.approx(rotated.mean_field_gap().item(), abs=0.01)


def test_on_a_rotated_model_a_full_covariance_guide_loses_nothing(small_problem):
    model, x = small_problem
    rotated = model.rotated(torch.tensor([[0.6, -0.8], [0.8, 0.6]]))
    guide = AmortizedMultivariateNormal(rotated, MLPEncoder(4, []))
    elbo = fitted_elbo(rotated, guide, x, steps=250)
    assert elbo.item() == pytest.approx(rotated.log_evidence(x).mean().item(), abs=0.01)


def test_the_exact_posterior_has_an_elbo_without_noise():
    """With q(z|x) = p(z|x) every single draw gives log p(x)."""
    x = torch.from_numpy(load_iris().data[:20])
    model = PPCA.fit_exact(x, 2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", model.posterior(x))

    loss = Trace_ELBO().loss(model, guide, x)
    assert -loss == pytest.approx(model.log_evidence(x).sum().item(), rel=1e-9)


def test_moves_to_float64_and_back_into_a_state_dict():
    model = PPCA(torch.ones(3, 1, dtype=torch.float32), torch.zeros(3, dtype=torch.float32), 1.0)
    double = copy.deepcopy(model).double()
    assert double.log_evidence(torch.randn(2, 3)).dtype == torch.float64
    assert model.log_evidence(torch.randn(2, 3).float()).dtype == torch.float32
    other = PPCA(torch.zeros(3, 1), torch.zeros(3), 2.0)
    other.load_state_dict(model.state_dict())
    assert_close(other.weight, torch.ones(3, 1))
    assert list(model.parameters()) == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PPCA(torch.zeros(3, 2), torch.zeros(2), 1.0), r"give \(D, q\) and \(D,\)"),
        (lambda: PPCA(torch.zeros(3, 2), torch.zeros(3), 0.0), "^noise_scale is 0.0; give"),
        (lambda: PPCA.fit_exact(torch.randn(5, 3), 3), "latent_dim is 3; give"),
        (lambda: PPCA.fit_exact(torch.randn(1, 3), 1), "n ≥ 2"),
        (lambda: PPCA.fit_exact(torch.randn(9, 2) @ torch.randn(2, 4), 2), "rank 2"),
        (lambda: random_model().rotated(torch.ones(3, 3)), "orthogonal"),
    ],
)
def test_wrong_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
