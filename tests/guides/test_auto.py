"""Pyro's own tests of its autoguides (tests/infer/test_autoguide.py), on ours and for every scale map."""

import copy
import io
import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer import autoguide as pyro_autoguide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuideList,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
)
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.optim import Adam, ClippedAdam
from pyro.util import check_model_guide_match
from torch import nn
from torch.distributions import constraints

from pyro_vae.guides import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    scales,
)

GUIDES = [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]
JOINT = GUIDES[1:]
ELBOS = [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO]
MAPS = scales.names()


def elbo_of(elbo_class, **options):
    return elbo_class(strict_enumeration_warning=False, **options)


def reachable(name, init_scale=0.1):
    """A map by name, with bounds around the scale where it needs some."""
    low, high = scales.get(name).bounds
    return scales.get(name) if low < init_scale / 2 and init_scale < high else scales.get(name, low=1e-9)


def many_shapes():
    pyro.sample("z1", dist.Normal(0.0, 1.0))
    pyro.sample("z2", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
    with pyro.plate("plate", 3):
        pyro.sample("z3", dist.Normal(torch.zeros(3), torch.ones(3)))
    pyro.sample("z4", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    pyro.sample("z5", dist.Dirichlet(torch.ones(3)))
    pyro.sample("z6", dist.Normal(0, 1).expand((2,)).mask(torch.arange(2) > 0).to_event(1))
    pyro.sample("z7", dist.LKJCholesky(2, torch.tensor(1.0)))
    pyro.sample("z8", dist.Uniform(-1.0, 2.0))


def three_supports():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Beta(2.0, 2.0))


# Pyro's tests


@pytest.mark.parametrize("guide_class", GUIDES)
def test_scores(guide_class):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = guide_class(model)
    guide_trace = poutine.trace(guide).get_trace()
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    latent = "z_unconstrained" if guide_class is AutoNormal else f"_{guide_class.__name__}_latent"
    assert latent not in model_trace.nodes
    assert guide_trace.nodes[latent]["log_prob_sum"].item() != 0.0
    assert model_trace.nodes["z"]["log_prob_sum"].item() != 0.0
    assert guide_trace.nodes["z"]["log_prob_sum"].item() == 0.0


@pytest.mark.parametrize("elbo_class", ELBOS)
@pytest.mark.parametrize("guide_class", GUIDES)
def test_factor(guide_class, elbo_class):
    def model(log_factor):
        pyro.sample("z1", dist.Normal(0.0, 1.0))
        pyro.factor("f1", log_factor)
        pyro.sample("z2", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
        with pyro.plate("plate", 3):
            pyro.factor("f2", log_factor)
            pyro.sample("z3", dist.Normal(torch.zeros(3), torch.ones(3)))

    guide = guide_class(model)
    elbo = elbo_of(elbo_class)
    elbo.loss(model, guide, torch.tensor(0.0))
    losses = []
    for factor in (5.0, 4.0):
        pyro.set_rng_seed(123)
        losses.append(elbo.loss(model, guide, torch.tensor(factor)))
    assert losses[0] - losses[1] == pytest.approx(-1 - 3)


@pytest.mark.parametrize("elbo_class", ELBOS)
@pytest.mark.parametrize("init_loc_fn", [init_to_feasible, init_to_mean, init_to_median, init_to_sample])
@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_shapes(guide_class, init_loc_fn, elbo_class):
    guide = guide_class(many_shapes, init_loc_fn=init_loc_fn)
    assert math.isfinite(elbo_of(elbo_class).loss(many_shapes, guide))


@pytest.mark.parametrize("guide_class", GUIDES)
def test_sequential_plates_are_refused(guide_class):
    def model():
        for i in pyro.plate("plate", 3):
            pyro.sample(f"y_{i}", dist.Normal(0, 1).expand([2, 1 + i, 2]).to_event(3))

    with pytest.raises(NotImplementedError, match="sequential"):
        guide_class(model)()


@pytest.mark.parametrize(("guide_class", "elbo_class"), [*zip(GUIDES, ELBOS, strict=True)])
def test_median_and_quantiles_after_training(guide_class, elbo_class):
    guide = guide_class(three_supports)
    elbo = elbo_of(elbo_class, num_particles=100, vectorize_particles=True)
    optimizer = ClippedAdam({"lr": 0.2, "betas": (0.8, 0.99), "lrd": 0.97})
    svi = SVI(three_supports, guide, optimizer, elbo)
    for _ in range(100):
        svi.step()
    median, quantiles = guide.median(), guide.quantiles([0.1, 0.5, 0.9])
    for name, value in {"x": 0.0, "y": 1.0, "z": 0.5}.items():
        assert median[name].item() == pytest.approx(value, abs=0.1)
        torch.testing.assert_close(quantiles[name].squeeze()[1], median[name].squeeze())
    x, y, z = (quantiles[name].squeeze() for name in "xyz")
    assert -3.0 < x[0] < x[1] - 1.0 < x[2] - 2.0 < 1.0
    assert 0.01 < y[0] < y[1] / 2 < y[2] / 4 < 25.0
    assert 0.01 < z[0] < z[1] - 0.1 < z[2] - 0.2 < 0.79


@pytest.mark.parametrize("guide_class", GUIDES)
def test_serialization_by_jit(guide_class):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("plate", 2):
            pyro.sample("y", dist.LogNormal(0.0, 1.0))
            pyro.sample("z", dist.Beta(2.0, 2.0))

    guide = guide_class(model)
    guide()
    pyro.set_rng_seed(0)
    expected = guide.call()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its tracer warns
        traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    pyro.set_rng_seed(0)
    for ours, theirs in zip(loaded.call(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in guide.named_parameters()}


@pytest.mark.parametrize("guide_class", GUIDES)
def test_discrete_parallel(guide_class):
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    def model(data):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        locs = pyro.sample("locs", dist.Normal(0, 10).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0, 1))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights.expand(len(data), -1)))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    guide = AutoGuideList(model)
    guide.append(guide_class(poutine.block(model, hide=["assignment"])))
    guide.append(AutoDiscreteParallel(poutine.block(model, expose=["assignment"])))
    assert math.isfinite(TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, guide, data))


@pytest.mark.parametrize("guide_class", GUIDES)
def test_discrete_latents_are_refused_with_pyros_sentence(guide_class):
    def model():
        pyro.sample("k", dist.Categorical(torch.ones(3)))

    with pytest.raises(ValueError, match="cannot handle discrete sample site 'k'"):
        guide_class(model)()


@pytest.mark.parametrize("guide_class", GUIDES)
def test_spheres_are_refused_with_pyros_sentence(guide_class):
    def model():
        pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match="ProjectedNormalReparam"):
        guide_class(model)()


def two_vectors():
    pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), torch.eye(5, 5)))


@pytest.mark.parametrize("guide_class", GUIDES)
def test_guide_list_of_two_and_of_a_callable(guide_class):
    guide = AutoGuideList(two_vectors)
    guide.append(guide_class(poutine.block(two_vectors, expose=["x"])))
    guide.append(guide_class(poutine.block(two_vectors, expose=["y"])))
    assert set(guide()) == {"x", "y"}

    def guide_of_x():
        return {"x": pyro.sample("x", dist.Delta(pyro.param("x_loc", torch.zeros(2))))}

    guide = AutoGuideList(two_vectors)
    guide.append(guide_of_x)
    guide.append(guide_class(poutine.block(two_vectors, expose=["y"])))
    assert set(guide()) == {"x", "y"}


@pytest.mark.parametrize("guide_class", GUIDES)
def test_nested_guide_list(guide_class):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.x_loc = nn.Parameter(torch.tensor(1.0))
            self.x_scale = PyroParam(torch.tensor(0.1), constraints.positive)

        def forward(self):
            pyro.sample("x", dist.Normal(self.x_loc, self.x_scale))
            with pyro.plate("plate", 2):
                pyro.sample("y", dist.Normal(2.0, 0.1))

    model = Model()
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["x"])))
    inner = AutoGuideList(poutine.block(model, expose=["y"]))
    inner.z = guide_class(poutine.block(model, expose=["y"]), init_loc_fn=init_to_median)
    guide.append(inner)
    svi = SVI(model, guide, Adam({"lr": 0.005}), Trace_ELBO())
    for _ in range(20):
        svi.step()
    guide_trace, model_trace = poutine.trace(guide).get_trace(), poutine.trace(model).get_trace()
    check_model_guide_match(model_trace, guide_trace)
    assert all(name.startswith(("AutoGuideList.0", "AutoGuideList.1.z")) for name in guide_trace.param_nodes)
    median = guide.median()
    assert median["x"].item() == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(median["y"], torch.full((2,), 2.0), rtol=0, atol=0.1)


def test_empty_model():
    for guide_class in JOINT:
        with pytest.raises(RuntimeError, match=f"{guide_class.__name__} found no latent variables"):
            guide_class(lambda: None)()


def test_unpack_latent():
    def model():
        return pyro.sample("x", dist.LKJCholesky(2, torch.tensor(1.0)))

    guide = AutoDiagonalNormal(model)
    assert guide()["x"].shape == model().shape
    assert next(iter(guide._unpack_latent(guide.sample_latent())))[1].shape == (1,)


@pytest.mark.parametrize("guide_class", GUIDES)
def test_init_loc_fn(guide_class):
    inits = {"x": torch.randn(2), "y": torch.randn(5)}
    guide = guide_class(two_vectors, init_loc_fn=lambda site: inits[site["name"]])
    guide()
    median = guide.median()
    for name, value in inits.items():
        torch.testing.assert_close(median[name], value)


@pytest.mark.parametrize("init_scale", [1e-1, 1e-4, 1e-8])
@pytest.mark.parametrize("guide_class", JOINT)
@pytest.mark.parametrize("name", ["softplus", "logvar", "stdplus"])
def test_init_scale(guide_class, init_scale, name):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), torch.eye(5, 5)))
        with pyro.plate("plate", 100):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = guide_class(model, init_scale=init_scale, scale=name)
    guide()
    _, scale = guide._loc_scale()
    assert init_scale * 0.5 < scale.square().mean().sqrt().item() < 2.0 * init_scale


class RandomLinear(nn.Linear, PyroModule):
    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([out_features, in_features]).to_event(2))
        self.bias = PyroSample(dist.Normal(0.0, 10.0).expand([out_features]).to_event(1))


class LinearRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = RandomLinear(2, 1)

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("plate", 3):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.parametrize("parallel", [False, True])
def test_linear_regression_and_predictive(guide_class, parallel):
    x, y = torch.randn(3, 2), torch.randn(3)
    model = LinearRegression()
    guide = guide_class(model)
    svi = SVI(model, guide, Adam({"lr": 0.005}), TraceMeanField_ELBO())
    svi.step(x, y)
    if parallel:  # nn.Linear does not broadcast over a batch of weights
        samples = Predictive(guide, num_samples=10, parallel=True)(x)
        assert samples["sigma"].shape == (10,)
    else:
        samples = Predictive(model, guide=guide, num_samples=10)(x)
        assert set(samples) == {"sigma", "linear.weight", "linear.bias", "obs"}


def test_subsample_model():
    def model(x, y=None, batch_size=None):
        loc = pyro.param("loc", lambda: torch.tensor(0.0))
        with pyro.plate("batch", len(x), subsample_size=batch_size):
            batch_x = pyro.subsample(x, event_dim=0)
            batch_y = None if y is None else pyro.subsample(y, event_dim=0)
            sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
            return pyro.sample("obs", dist.Normal(loc + batch_x, sigma), obs=batch_y)

    x = torch.randn(50)
    y = model(x).detach()
    pyro.clear_param_store()
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": 0.02}), TraceMeanField_ELBO())
    for _ in range(5):
        svi.step(x, y, batch_size=20)
    assert guide.scales.sigma.shape == (50,)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("init_loc_fn", [init_to_feasible, init_to_mean, init_to_median])
def test_subsample_guide(as_list, init_loc_fn):
    def model(batch, subsample, full_size):
        result = []
        drift = pyro.sample("drift", dist.LogNormal(-1, 0.5))
        with pyro.plate("data", full_size, subsample=subsample):
            z = 0.0
            for t, observed in enumerate(batch):
                z = pyro.sample(f"state_{t}", dist.Normal(z, drift))
                result.append(pyro.sample(f"obs_{t}", dist.Bernoulli(logits=z), obs=observed))
        return torch.stack(result)

    def create_plates(batch, subsample, full_size):
        return pyro.plate("data", full_size, subsample=subsample)

    if as_list:
        guide = AutoGuideList(model, create_plates=create_plates)
        guide.append(AutoDelta(poutine.block(model, expose=["drift"])))
        guide.append(AutoNormal(poutine.block(model, hide=["drift"]), init_loc_fn=init_loc_fn))
    else:
        guide = AutoNormal(model, create_plates=create_plates, init_loc_fn=init_loc_fn)
    data = model([None] * 8, torch.arange(50), 50)
    svi = SVI(model, guide, Adam({"lr": 0.02}), Trace_ELBO())
    for rows in torch.arange(50).split(20):
        svi.step(data[:, rows], rows, full_size=50)
    locs = guide[1].locs if as_list else guide.locs
    assert locs.state_0.shape == (50,)
    assert (locs.state_0 != 0).all()  # every row was moved by its batch


@pytest.mark.parametrize("independent", [True, False])
def test_subsample_guide_in_two_plates(independent):
    def model(data):
        size = len(data)
        with pyro.plate("origin", size, dim=-2), pyro.plate("destin", size, dim=-1):
            batch = pyro.subsample(data, event_dim=0)
            level = pyro.sample("level", dist.LogNormal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(0, level), obs=batch)

    def create_plates(data):
        size = len(data)
        origin = pyro.plate("origin", size, subsample_size=5, dim=-2)
        if independent:
            return origin, pyro.plate("destin", size, subsample_size=5, dim=-1)
        with origin as subsample:
            pass
        return origin, pyro.plate("destin", size, subsample=subsample, dim=-1)

    guide = AutoNormal(model, create_plates=create_plates)
    svi = SVI(model, guide, Adam({"lr": 0.01}), TraceMeanField_ELBO())
    for _ in range(2):
        assert math.isfinite(svi.step(torch.randn(10, 10)))


def test_dynamic_structure():
    """AutoNormal meets only some of its latents in some calls."""

    def model(both):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        if both:
            pyro.sample("y", dist.LogNormal(0.0, 1.0))

    guide = AutoNormal(model)
    guide(True)
    model_trace = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace(False))).get_trace(False)
    assert set(model_trace.stochastic_nodes) == {"x"}


def test_neutra_reparam_takes_the_joint_guides():
    for guide_class in (AutoDiagonalNormal, AutoMultivariateNormal):
        guide = guide_class(three_supports, scale="logvar")
        guide()
        neutra = NeuTraReparam(guide.requires_grad_(False))
        trace = poutine.trace(neutra.reparam(three_supports)).get_trace()
        trace.compute_log_prob()
        assert trace.log_prob_sum().isfinite()


# Ours


@pytest.mark.parametrize("guide_class", GUIDES)
def test_parameters_draws_and_losses_are_pyros_under_softplus(guide_class):
    theirs_class = getattr(pyro_autoguide, guide_class.__name__)
    results = []
    for cls in (guide_class, theirs_class):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = cls(many_shapes)
        loss = Trace_ELBO()
        losses = [loss.loss_and_grads(many_shapes, guide) for _ in range(3)]
        results.append((losses, {name: p.grad for name, p in guide.named_parameters()}))
    (losses, grads), (their_losses, their_grads) = results
    assert losses == pytest.approx(their_losses, rel=1e-9)
    assert grads.keys() == their_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, their_grads[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("guide_class", GUIDES)
def test_state_and_methods_interchange_with_pyros(guide_class):
    ours, theirs = guide_class(three_supports), getattr(pyro_autoguide, guide_class.__name__)(three_supports)
    ours()
    theirs()
    theirs.load_state_dict(ours.state_dict())
    for ask in (lambda g: g.median(), lambda g: g.quantiles([0.1, 0.9])):
        torch.testing.assert_close(ask(ours), ask(theirs), rtol=1e-5, atol=1e-8)
    if guide_class is not AutoNormal:
        q, p = ours.get_posterior(), theirs.get_posterior()
        torch.testing.assert_close(q.stddev, p.stddev)
        value = p.sample()
        torch.testing.assert_close(q.log_prob(value), p.log_prob(value))


@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.parametrize("name", MAPS)
def test_every_map_starts_trains_saves_and_loads(guide_class, name):
    scale = reachable(name)
    guide = guide_class(three_supports, scale=scale, init_scale=0.1)
    guide()
    sigma = guide.scale if guide_class in JOINT else guide.scales.y
    start = 0.1 * 0.5**0.5 if guide_class is AutoLowRankMultivariateNormal else 0.1
    torch.testing.assert_close(sigma, torch.full_like(sigma, start), rtol=1e-6, atol=0)
    svi = SVI(three_supports, guide, Adam({"lr": 0.01}), TraceMeanField_ELBO(num_particles=4))
    for _ in range(2):
        assert math.isfinite(svi.step())
    moved = guide.scale if guide_class in JOINT else guide.scales.y
    assert (moved != sigma).all()

    pyro.clear_param_store()
    fresh = guide_class(three_supports, scale=scale, init_scale=0.1)
    fresh()
    pyro.clear_param_store()
    fresh.load_state_dict(guide.state_dict())
    torch.testing.assert_close(fresh.median(), guide.median())
    torch.testing.assert_close(fresh.quantiles([0.1, 0.9]), guide.quantiles([0.1, 0.9]))


@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_agree_at_equal_scale(guide_class, name):
    results = []
    for scale in (scales.get("logstd"), reachable(name)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = guide_class(three_supports, scale=scale, init_scale=0.1)
        guide()
        pyro.set_rng_seed(1)
        trace = poutine.trace(guide).get_trace()
        results.append((trace.nodes["y"]["value"], trace.log_prob_sum()))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("raw", [-1e4, -200.0, 150.0])
@pytest.mark.parametrize("name", ["logvar", "softplus", "stdplus", "explinear"])
def test_density_takes_log_scale_from_the_map(guide_class, raw, name):
    """Where σ itself under- or overflows, log q and its gradient are those of log σ."""

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = guide_class(model, scale=name).float()
    guide()
    parameter = guide.scales.x_unconstrained if guide_class is AutoNormal else guide.scale_unconstrained
    with torch.no_grad():
        parameter.fill_(raw)
    if guide_class is AutoNormal:
        q = poutine.trace(guide).get_trace().nodes["x_unconstrained"]["fn"]
    else:
        q = guide.get_posterior()
    log_prob = q.log_prob(q.mean.detach())
    start = torch.tensor(raw, requires_grad=True)
    expected = -2 * scales.get(name).log_scale(start) - math.log(2 * math.pi)
    assert log_prob.item() == pytest.approx(expected.item(), rel=1e-5)
    (slope,) = torch.autograd.grad(expected, start)
    log_prob.backward()
    assert parameter.grad.sum().item() == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("guide_class", GUIDES)
@pytest.mark.parametrize(
    ("elbo_class", "as_list"),
    [(Trace_ELBO, False), (TraceMeanField_ELBO, False), (TraceMeanField_ELBO, True)],
)
def test_log_normal_recovers_its_location(guide_class, elbo_class, as_list):
    """Pyro's guides give loc 0.0 instead of 1.0 under TraceMeanField_ELBO: the Jacobian is lost."""

    def model():
        pyro.sample("y", dist.LogNormal(1.0, 1.0))

    guide = guide_class(model, scale="logvar", init_scale=0.5)
    program = guide
    if as_list:
        program = AutoGuideList(model)
        program.append(guide)
    elbo = elbo_class(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, program, ClippedAdam({"lr": 0.1, "lrd": 0.96}), elbo)
    for _ in range(100):
        svi.step()
    assert guide.median()["y"].log().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("guide_class", GUIDES)
def test_mean_field_loss_is_the_trace_loss(guide_class):
    def model():
        many_shapes()
        pyro.sample("obs", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    guide = guide_class(model)
    guide()
    losses = []
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(model, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("guide_class", GUIDES)
def test_pickle_and_deepcopy(guide_class):
    guide = guide_class(three_supports, scale="bounded", init_scale=0.1)
    guide()
    expected = guide.median(), guide.quantiles([0.2])
    for twin in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        torch.testing.assert_close((twin.median(), twin.quantiles([0.2])), expected)
        assert twin.scale_map == guide.scale_map
        twin()


@pytest.mark.parametrize("guide_class", GUIDES)
def test_wrong_scales_are_refused_in_the_constructor(guide_class):
    with pytest.raises(ValueError, match="nonsense"):
        guide_class(three_supports, scale="nonsense")
    with pytest.raises(ValueError, match=r"^init_scale is -1\.0; give a positive number"):
        guide_class(three_supports, init_scale=-1.0)
    with pytest.raises(
        ValueError, match=r"^init_scale is 3.0, and the scales of Bounded\(low=0.1, high=1.0\) .*; give"
    ):
        guide_class(three_supports, scale=scales.get("bounded", low=0.1, high=1.0), init_scale=3.0)
