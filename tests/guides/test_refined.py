"""A refined guide is a guide, whatever it wraps, and leaves what it wraps alone."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

from pyro_vae import diagnose, refine
from pyro_vae.guides import AmortizedFlow, AmortizedMultivariateNormal, AmortizedNormal, Refined
from pyro_vae.models import PPCA

X = torch.tensor([[1.0, 0.5, -1.0, 2.0], [0.0, 3.0, 1.0, 0.0], [2.0, -2.0, 0.3, 1.0]], dtype=torch.float64)


def ppca():
    generator = torch.Generator().manual_seed(3)
    return PPCA(torch.randn(4, 2, generator=generator), torch.zeros(4), 0.5)


def mixed(x):
    """A pair of reals and a rate, and counts that they make."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate * z.exp().sum(-1)), obs=x)


def normals(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], 0.3).to_event(1))


def correlated(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(x[:, :2], torch.eye(2)))


class ByPosterior(torch.nn.Module):
    """No Pyro autoguide, but has get_posterior."""

    def get_posterior(self, x):
        return dist.Normal(x[:, 2:], 0.7).to_event(1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.get_posterior(x))


def wrapped(kind, model):
    if kind in (AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow):
        return kind(model, torch.nn.Linear(4, 8))
    if kind in (AutoNormal, AutoMultivariateNormal):
        guide = kind(model)
        guide(X)
        return guide
    return ByPosterior() if kind is ByPosterior else kind


@pytest.mark.parametrize(
    "kind",
    [
        AmortizedNormal,
        AmortizedMultivariateNormal,
        AmortizedFlow,
        AutoNormal,
        AutoMultivariateNormal,
        normals,
        correlated,
        ByPosterior,
    ],
)
def test_whatever_it_wraps_a_linear_gaussian_posterior_is_exact(kind):
    model = ppca()
    guide = wrapped(kind, model)
    stream, store = torch.get_rng_state(), list(pyro.get_param_store())
    state = copy.deepcopy(guide.state_dict()) if isinstance(guide, torch.nn.Module) else {}
    refined = Refined(guide, model=model)
    q, exact = refined.posterior(X), model.posterior(X)
    torch.testing.assert_close(q.mean, exact.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        q.covariance_matrix, exact.covariance_matrix.expand(3, 2, 2), rtol=0, atol=1e-5
    )
    assert refined.refinement.converged.all()
    torch.testing.assert_close(refined.refinement.elbo, model.log_evidence(X), rtol=0, atol=1e-5)
    if kind not in (AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow):  # these make their heads
        assert torch.equal(torch.get_rng_state(), stream)
    for name, value in state.items():
        assert torch.equal(guide.state_dict()[name], value)
    assert list(pyro.get_param_store()) == store


def test_the_random_stream_is_left_alone():
    model = ppca()
    guide = AmortizedNormal(model, torch.nn.Linear(4, 8))
    guide(X)
    refined, stream = Refined(guide), torch.get_rng_state()
    refined.posterior(X)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_several_and_constrained_latents(covariance):
    x = torch.tensor([2.0, 9.0, 0.0])

    class Column(torch.nn.Module):
        def forward(self, x):
            return x[:, None] * torch.ones(4)

    guide = AmortizedNormal(mixed, Column())
    refined = Refined(guide, covariance=covariance)
    q = refined.posterior(x)
    assert set(q) == {"z", "rate"}
    assert (q["rate"].sample((10,)) > 0).all()
    assert refined.get_posterior(x).event_shape == (3,)
    median = refined.median(x)
    assert median["z"].shape == (3, 2)
    low, high = refined.quantiles([0.1, 0.9], x)["rate"]
    assert (low < median["rate"]).all() and (median["rate"] < high).all()
    assert (refined.refinement.elbo > refined.refinement.elbo_before).all()
    # by Pyro's own ELBO, which runs the program
    loss = [
        Trace_ELBO(num_particles=2000, vectorize_particles=True).loss(mixed, g, x) for g in (refined, guide)
    ]
    assert loss[0] < loss[1]
    assert -loss[0] == pytest.approx(float(refined.refinement.elbo.sum()), abs=0.5)
    draws = Predictive(mixed, guide=refined, num_samples=5)(x)
    assert draws["rate"].shape == (5, 3)


def test_conditional_models_and_keywords():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 3.0))

    x, y = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -1.0])
    q = Refined(guide, model=model).posterior(x, y=y)
    torch.testing.assert_close(q.mean, (x + y) / 2)


def test_given_global_latents():
    def model(x):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"'weight' sits outside the plate.*fix the others at a draw"):
        Refined(guide, model=model).posterior(x)
    given = poutine.condition(model, data={"weight": torch.tensor(2.0)})
    torch.testing.assert_close(Refined(guide, model=given).posterior(x).mean, 2 * x / 5)
    hidden = poutine.block(given, hide=["weight"])
    torch.testing.assert_close(Refined(guide, model=hidden).posterior(x).mean, 2 * x / 5)
    torch.testing.assert_close(refine(hidden, guide, x).loc[:, 0], 2 * x / 5)
    assert (diagnose(hidden, guide, x, draws=100, refined=True)["khat"] < 0.7).all()


def test_a_guide_that_depends_on_its_own_draws_begins_with_their_moments():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    q = Refined(guide, model=model).get_posterior(torch.tensor([3.0]))
    torch.testing.assert_close(q.mean, torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(q.covariance_matrix, torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]) / 3)


def test_the_wrapped_guide_keeps_its_names_and_goes_on_training():
    model = ppca()
    guide = AmortizedMultivariateNormal(model, torch.nn.Linear(4, 8))
    names, site = [name for name, _ in guide.named_parameters()], guide._pyro_name
    refined = Refined(guide)
    refined(X)
    assert guide._pyro_name == site
    guide(X)
    assert [name for name, _ in guide.named_parameters()][: len(names)] == names
    before = refined.refinement.elbo_before
    with torch.no_grad():
        guide.loc_head.bias += 0.5
    refined(X)
    assert not torch.equal(refined.refinement.elbo_before, before)


def test_an_encoder_in_training_mode_is_asked_as_if_it_were_not():
    model = ppca()
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 8), torch.nn.Dropout(0.9))
    guide = AmortizedNormal(model, encoder)
    guide(X)
    statistics = encoder[0].running_mean.clone()
    refined = Refined(guide)
    one, other = (refined.posterior(X) and refined.refinement.elbo_before for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(encoder[0].running_mean, statistics)
    assert encoder.training


def test_copies_and_pickles_refine_as_well():
    model = ppca()
    refined = Refined(AmortizedNormal(model, torch.nn.Linear(4, 8)))
    q = refined.posterior(X)
    twin = copy.deepcopy(refined)
    torch.testing.assert_close(twin.posterior(X).mean, q.mean)
    assert pickle.loads(pickle.dumps(refined)).steps == 12


def bad_models():
    def discrete(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def blind(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    return {"discrete": discrete, "blind": blind}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0; give a positive integer, and 12"),
        ({"stop": -1.0}, ValueError, "stop is -1.0; give a positive number of nats"),
        ({"covariance": "round"}, ValueError, "covariance is 'round'; give 'full' or 'diagonal'"),
        ({"guide": 3}, TypeError, "guide is an int; give a Pyro program"),
        ({"model": None}, TypeError, "guide is a function, which does not know its model; give model="),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Refined(**{"guide": normals, "model": ppca(), **arguments})


def test_discrete_latents_are_named():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(torch.ones(len(x))))

    with pytest.raises(ValueError, match="latent 'k' is discrete .*: marginalize it in the model"):
        Refined(guide, model=bad_models()["discrete"]).posterior(torch.ones(2))


def test_a_model_that_observes_nothing():
    with pytest.raises(ValueError, match="the model observes nothing"):
        Refined(normals, model=bad_models()["blind"]).posterior(X)


def test_a_guide_without_spread():
    model = ppca()
    guide = AutoDelta(model)
    guide(X)
    with pytest.raises(ValueError, match="no mean and spread of 'z' to start from; give a guide whose draws"):
        Refined(guide, model=model).posterior(X)


def test_a_guide_without_the_latent():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(ValueError, match="the guide has no site 'z', which the model draws; add it"):
        Refined(guide, model=ppca()).posterior(X)


def test_the_log_counts_those_that_have_not_converged(caplog):
    with caplog.at_level("INFO", logger="pyro_vae"):
        Refined(normals, model=ppca(), steps=1, stop=1e-12).posterior(X)
    assert "would still gain" in caplog.text
    assert "more than steps=1" in caplog.text
