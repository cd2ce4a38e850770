"""The three encoder guides: distributions, gradients, every ELBO, saving, and what they refuse."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae.guides import (
    AmortizedFlow,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    LogScaleNormal,
    scales,
)

FAMILIES = [AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow]
GAUSSIAN = [AmortizedNormal, AmortizedMultivariateNormal]


class Encoder(nn.Module):
    """Features of x, and of whatever else the model takes."""

    def __init__(self, in_features=3, features=8):
        super().__init__()
        self.linear = nn.Linear(in_features, features)

    def forward(self, *x):
        return self.linear(torch.cat(x, -1)).tanh()


def one_latent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + torch.zeros(3), 1.0).to_event(1), obs=x)


def many_latents(x):
    with pyro.plate("data", len(x)):
        vector = pyro.sample("vector", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        matrix = pyro.sample("matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        scalar = pyro.sample("scalar", dist.Normal(0.0, 1.0))
        positive = pyro.sample("positive", dist.Gamma(2.0, 2.0))
        log_normal = pyro.sample("log_normal", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        interval = pyro.sample("interval", dist.Uniform(-1.0, 2.0))
        simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
        cholesky = pyro.sample("cholesky", dist.LKJCholesky(3, 1.0))
        loc = vector.sum(-1) + matrix.sum((-1, -2)) + scalar + log_normal.sum(-1) + interval
        loc = loc.unsqueeze(-1) + simplex + cholesky.sum(-1)
        pyro.sample("x", dist.Normal(loc, positive.unsqueeze(-1)).to_event(1), obs=x)


class Shifted(pyro.nn.PyroModule):
    """one_latent with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        one_latent(x - self.loc)


EVENT_SHAPES = {
    "vector": (2,),
    "matrix": (2, 3),
    "scalar": (),
    "positive": (),
    "log_normal": (2,),
    "interval": (),
    "simplex": (3,),
    "cholesky": (3, 3),
}


def moved(guide, x):
    """The guide away from its symmetric start: every parameter a little random.

    Of a matrix, by the root of its columns, so that what it returns moves as much however many it has; else
    a flow over 17 latents takes them to ±2,000, whose exponential is no number of a float64.
    """
    guide(x)
    with torch.no_grad():
        for parameter in guide.parameters():
            columns = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.add_(torch.randn_like(parameter) * (0.5 / columns**0.5))
    return guide


# What it finds and draws


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_every_latent_with_its_shape(family):
    x = torch.randn(5, 3)
    guide = family(many_latents, Encoder())
    draws = guide(x)
    assert list(draws) == list(EVENT_SHAPES)
    assert {name: tuple(draw.shape[1:]) for name, draw in draws.items()} == EVENT_SHAPES
    assert guide.latent_dim == 2 + 6 + 1 + 1 + 2 + 1 + 2 + 3
    assert guide.get_posterior(x).event_shape == (guide.latent_dim,)
    trace = poutine.trace(many_latents).get_trace(x)
    for name, draw in draws.items():
        assert trace.nodes[name]["fn"].support.check(draw).all()


@pytest.mark.parametrize("scale", scales.names())
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_at_init_scale_under_every_map(family, scale):
    low, high = scales.get(scale).bounds
    init_scale = 0.4 if low < 0.4 < high else math.sqrt(low * high)
    x = torch.randn(5, 3)
    guide = family(one_latent, Encoder(), scale=scale, init_scale=init_scale)
    log_scale = guide.local_parameters(x)["log_scale"]
    torch.testing.assert_close(log_scale.exp(), torch.full((5, 2), init_scale), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", [one_latent, many_latents])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=2),
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        TraceGraph_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}-{elbo.vectorize_particles}",
)
def test_every_elbo_reaches_every_parameter(family, model, elbo):
    x = torch.randn(5, 3)
    guide = moved(family(model, Encoder()), x)
    loss = elbo.loss_and_grads(model, guide, x)
    assert math.isfinite(loss)
    assert math.isfinite(elbo.loss_and_grads(model, guide, x[:3]))  # a smaller last batch
    for name, parameter in guide.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_field_elbo_is_trace_elbo_on_average(family):
    """Where a KL is sampled it is the very same number; where it is analytic the mean is the same."""
    x = torch.randn(5, 3)
    guide = moved(family(many_latents, Encoder(), init_scale=0.3), x)
    losses = {}
    for elbo_class in (Trace_ELBO, TraceMeanField_ELBO):
        elbo = elbo_class(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
        torch.manual_seed(3)
        losses[elbo_class] = elbo.loss(poutine.block(many_latents, hide=["x"]), guide, x)
    spread = 3 * 5 * guide.latent_dim**0.5 / 4000**0.5
    assert losses[TraceMeanField_ELBO] == pytest.approx(losses[Trace_ELBO], abs=spread)


def real_latents(x):
    with pyro.plate("data", len(x)):
        vector = pyro.sample("vector", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        matrix = pyro.sample("matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        scalar = pyro.sample("scalar", dist.Normal(0.5, 1.0))
        log_normal = pyro.sample("log_normal", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        return vector, matrix, scalar, log_normal


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Pyro's own choice of compiler
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model", [one_latent, real_latents])
def test_the_jit_elbo_gives_the_same_numbers(family, model):
    # Not JitTraceMeanField_ELBO: Pyro 1.9.2 compiles that anew at every call, which draws noise of its own.
    x = torch.randn(5, 3)
    guide = moved(family(model, Encoder()), x)
    compiled = JitTrace_ELBO(ignore_jit_warnings=True)
    compiled.loss_and_grads(model, guide, x)
    losses, gradients = [], []
    for elbo in (Trace_ELBO(), compiled):
        guide.zero_grad()
        torch.manual_seed(1)
        losses.append(elbo.loss_and_grads(model, guide, x))
        gradients.append({name: parameter.grad.clone() for name, parameter in guide.named_parameters()})
    assert losses[0] == pytest.approx(losses[1])
    torch.testing.assert_close(*gradients)


def kl_without_data(model, guide, x):
    return [TraceMeanField_ELBO().loss(model, guide, x) for _ in range(3)]


def test_analytic_kl_has_no_variance():
    x = torch.randn(5, 3)
    guide = moved(AmortizedNormal(real_latents, Encoder()), x)
    first, *others = kl_without_data(real_latents, guide, x)
    assert others == [first, first]
    loc, log_scale = (guide.local_parameters(x)[key] for key in ("loc", "log_scale"))
    prior = dist.Normal(torch.tensor([0.0] * 8 + [0.5] + [0.0] * 2), torch.tensor([2.0] * 2 + [1.0] * 9))
    expected = kl_divergence(dist.Normal(loc, log_scale.exp()), prior).sum().item()
    assert first == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("event_shape", [(), (1,), (4,)])
def test_analytic_kl_of_a_full_covariance_has_no_variance(event_shape):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.ones(event_shape), 2.0).to_event(len(event_shape)))

    x = torch.randn(5, 3)
    guide = moved(AmortizedMultivariateNormal(model, Encoder()), x)
    first, *others = kl_without_data(model, guide, x)
    assert others == [first, first]
    q = guide.get_posterior(x)
    dim = q.event_shape[0]
    p = torch.distributions.MultivariateNormal(torch.ones(dim), 4.0 * torch.eye(dim))
    full = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    assert first == pytest.approx(kl_divergence(full, p).sum().item(), rel=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_of_an_own_draw_is_that_of_the_value(family):
    """The guide's log density comes from caches; the value by itself, inverted, must have the same."""
    x = torch.randn(5, 3)
    guide = moved(family(one_latent, Encoder()), x)
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], guide.posterior(x).log_prob(z.detach().clone()), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("family", GAUSSIAN)
@pytest.mark.parametrize("elbo_class", [Trace_ELBO, TraceMeanField_ELBO])
def test_positive_latent_recovers_its_exact_posterior(family, elbo_class):
    """z ~ LogNormal(1, 1), log x ~ Normal(log z, 1): log z | x is Normal((1 + log x)/2, 1/2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.ones(1), 1.0).to_event(1))
            pyro.sample("x", dist.LogNormal(z.log(), 1.0).to_event(1), obs=x)

    class LogEncoder(nn.Module):
        def forward(self, x):
            return x.log()

    x = torch.randn(64, 1).exp()
    guide = family(model, LogEncoder(), scale="logvar")
    guide(x)
    elbo = elbo_class(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    for _ in range(200):
        optimizer.zero_grad()
        elbo.loss_and_grads(model, guide, x)
        optimizer.step()
        schedule.step()
    parameters = guide.local_parameters(x)
    torch.testing.assert_close(parameters["loc"], (1 + x.log()) / 2, rtol=0, atol=0.05)
    torch.testing.assert_close(parameters["log_scale"].exp(), torch.full_like(x, 0.5**0.5), rtol=0.05, atol=0)


# Equality at equal σ


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", scales.names())
def test_all_maps_agree_at_equal_scale(family, scale):
    """Same loc, same σ, same noise: same draws, log q and loss."""
    low, high = scales.get(scale).bounds
    if not low < 0.7 < high:
        scale = scales.get(scale, low=0.1, high=1.0)
    x = torch.randn(5, 3)
    results = []
    for scale_map in ("logstd", scale):
        torch.manual_seed(1)
        guide = family(one_latent, Encoder(), scale=scale_map, init_scale=0.7)
        trace = poutine.trace(guide).get_trace(x)
        trace.compute_log_prob()
        torch.manual_seed(2)
        loss = TraceMeanField_ELBO().loss(one_latent, guide, x)
        results.append((trace.nodes["z"]["value"], trace.nodes["z"]["log_prob"], torch.tensor(loss)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


# Outside Pyro


def test_posterior_of_one_latent_is_the_distribution():
    x = torch.randn(5, 3)
    guide = moved(AmortizedNormal(one_latent, Encoder(), scale="logvar"), x)
    q = guide.posterior(x)
    assert isinstance(q.base_dist, LogScaleNormal)
    assert (q.batch_shape, q.event_shape) == ((5,), (2,))
    parameters = guide.local_parameters(x)
    torch.testing.assert_close(q.mean, parameters["loc"])
    torch.testing.assert_close(q.stddev, parameters["log_scale"].exp())
    assert q.rsample((7,)).shape == (7, 5, 2)
    assert q.mean.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_scores_values_of_every_shape(family):
    guide = moved(family(one_latent, Encoder()), torch.randn(5, 3))
    q = guide.posterior(torch.randn(5, 3))
    z = torch.randn(4, 1, 2)
    expected = q.log_prob(z.expand(4, 5, 2))
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(q.log_prob(z[0, 0]), expected[0])
    torch.testing.assert_close(q.expand((4, 5)).log_prob(z), expected)


@pytest.mark.parametrize("family", GAUSSIAN)
def test_posterior_of_several_latents_is_a_dict_of_marginals(family):
    x = torch.randn(5, 3)
    guide = moved(family(many_latents, Encoder()), x)
    posterior = guide.posterior(x)
    assert {name: tuple(q.event_shape) for name, q in posterior.items()} == EVENT_SHAPES
    assert all(q.batch_shape == (5,) for q in posterior.values())
    assert all(q.log_prob(q.rsample((2,))).shape == (2, 5) for q in posterior.values())


def test_marginals_of_a_full_covariance_are_its_blocks():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    x = torch.randn(5, 3)
    guide = moved(AmortizedMultivariateNormal(model, Encoder()), x)
    joint, marginals = guide.get_posterior(x), guide.posterior(x)
    torch.testing.assert_close(marginals["a"].covariance_matrix, joint.covariance_matrix[:, :2, :2])
    torch.testing.assert_close(marginals["b"].covariance_matrix, joint.covariance_matrix[:, 2:, 2:])
    assert (joint.covariance_matrix[:, :2, 2:].abs() > 1e-9).all()
    draws = guide(x[:1].expand(8000, 3))
    torch.testing.assert_close(
        torch.cat([draws["a"], draws["b"]], -1).T.cov(),
        joint.covariance_matrix[0].detach(),
        rtol=0.1,
        atol=0.05,
    )


@pytest.mark.parametrize("family", GAUSSIAN)
def test_medians_and_quantiles(family):
    x = torch.randn(5, 3)
    guide = moved(family(many_latents, Encoder()), x)
    median, quantiles = guide.median(x), guide.quantiles([0.1, 0.5, 0.9], x)
    for name, event_shape in EVENT_SHAPES.items():
        assert median[name].shape == (5, *event_shape)
        assert quantiles[name].shape == (3, 5, *event_shape)
        torch.testing.assert_close(quantiles[name][1], median[name])
    for name in ("vector", "matrix", "scalar", "positive", "log_normal", "interval"):
        assert (quantiles[name].diff(dim=0) > 0).all(), name
    torch.testing.assert_close(median["scalar"], guide.posterior(x)["scalar"].mean)
    draws = guide.posterior(x)["positive"].sample((4000,))
    below = (draws[None] < quantiles["positive"][:, None]).double().mean(1)
    torch.testing.assert_close(
        below, torch.tensor([0.1, 0.5, 0.9]).unsqueeze(-1).expand(3, 5), atol=0.04, rtol=0
    )


def test_flow_is_more_than_normal_and_conditional():
    """Of a Normal the curvature of log q is one matrix; of independent coordinates it is diagonal."""
    x = torch.randn(2, 3)
    guide = moved(AmortizedFlow(one_latent, Encoder(), transforms=3), x)
    assert len(guide.flow) == 3
    q = guide.posterior(x)

    def curvature(at):
        z = torch.full((2, 2), at)
        hessian = torch.autograd.functional.hessian(lambda z: q.log_prob(z).sum(), z)
        return torch.stack([hessian[i, :, i] for i in range(2)])

    here, there = curvature(-1.0), curvature(1.0)
    assert (here[:, 0, 1].abs() > 1e-9).all()
    assert ((here - there).abs().amax((1, 2)) > 1e-9).all()
    context = guide.local_parameters(x)["context"]
    one, other = guide.flow[0].condition(context)(torch.ones(2, 2))
    assert ((one - other).abs() > 1e-9).any()


def test_flow_starts_as_the_diagonal_normal():
    x = torch.randn(5, 3)
    flow = AmortizedFlow(one_latent, Encoder(), init_scale=0.5)
    z = flow(x)["z"]
    parameters = flow.local_parameters(x)
    torch.testing.assert_close(
        flow.posterior(x).log_prob(z),
        dist.Normal(parameters["loc"], 0.5).to_event(1).log_prob(z),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("model", [one_latent, many_latents])
def test_predictive(family, parallel, model):
    x = torch.randn(5, 3)
    guide = family(model, Encoder())
    samples = Predictive(poutine.uncondition(model), guide=guide, num_samples=4, parallel=parallel)(x)
    trace = poutine.trace(model).get_trace(x)
    for name in [*trace.stochastic_nodes, "x"]:
        if name != "data":
            assert samples[name].shape == (4, *trace.nodes[name]["value"].shape)
    assert not torch.equal(samples["x"][0], x)


@pytest.mark.parametrize("family", FAMILIES)
def test_local_parameters_can_be_changed_and_sampled(family):
    """What a search for a better q of one observation needs."""
    x = torch.randn(5, 3)
    for model in (one_latent, many_latents):
        guide = moved(family(model, Encoder()), x)
        parameters = {
            name: value.detach().requires_grad_() for name, value in guide.local_parameters(x).items()
        }
        torch.manual_seed(1)
        draws = guide.sample_sites(parameters, x)
        torch.manual_seed(1)
        for name, draw in guide(x).items():
            torch.testing.assert_close(draws[name], draw)
        sum(draw.sum() for draw in draws.values()).backward()
        assert all(value.grad.abs().sum() > 0 for value in parameters.values())
        assert all(len(value) == 5 for value in parameters.values())


def test_a_model_with_several_arguments():
    def model(x, y, observe=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y.squeeze(-1), 1.0), obs=x[:, 0] if observe else None)

    class Two(nn.Module):
        def forward(self, x, y, observe=True):
            return torch.cat([x, y], -1)

    x, y = torch.randn(5, 3), torch.randn(5, 1)
    guide = AmortizedNormal(model, Two())
    assert math.isfinite(TraceMeanField_ELBO().loss(model, guide, x, y, observe=True))
    assert guide.posterior(x, y).batch_shape == (5,)


# Set-up


def test_calls_may_differ_in_what_has_no_shape():
    """A batch as one object: its rows are known from the features."""

    class Batch:
        def __init__(self, x):
            self.x = x

    class Unpacking(Encoder):
        def forward(self, batch):
            return super().forward(batch.x)

    guide = AmortizedNormal(lambda batch: one_latent(batch.x), Unpacking())
    for rows in (5, 3):
        assert guide(Batch(torch.randn(rows, 3)))["z"].shape == (rows, 2)


def test_set_up_leaves_the_random_stream_to_the_first_draw():
    """Guides of one encoder draw the same noise, whatever the model drew while it was traced."""

    def busy(x):
        torch.randn(1000)
        one_latent(x)

    x = torch.randn(5, 3)
    draws = []
    for model in (one_latent, busy):
        torch.manual_seed(1)
        draws.append(AmortizedNormal(model, Encoder())(x)["z"])
    torch.testing.assert_close(*draws, rtol=0, atol=0)


def test_set_up_is_invisible_to_the_surrounding_program():
    x = torch.randn(5, 3)
    guide = AmortizedNormal(one_latent, Encoder())
    first, second = (set(poutine.trace(guide).get_trace(x).nodes) for _ in range(2))
    assert first == second
    assert "x" not in first


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_into_a_fresh_guide(family):
    x = torch.randn(5, 3)
    trained = moved(family(many_latents, Encoder()), x)
    fresh = family(many_latents, Encoder())
    fresh.load_state_dict(trained.state_dict())
    assert dict(fresh.named_parameters()).keys() == dict(trained.named_parameters()).keys()
    torch.manual_seed(1)
    expected = trained(x)
    torch.manual_seed(1)
    for name, draw in fresh(x).items():
        torch.testing.assert_close(draw, expected[name], rtol=0, atol=0)


def test_state_of_another_model_is_refused():
    x = torch.randn(5, 3)
    trained = moved(AmortizedNormal(one_latent, Encoder()), x)
    fresh = AmortizedNormal(many_latents, Encoder())
    fresh.load_state_dict(trained.state_dict())
    with pytest.raises(
        ValueError, match="loaded state is of a guide for 2 latent dimensions, but the model has 18"
    ):
        fresh(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_leave_the_original_whole(family):
    x = torch.randn(5, 3)
    guide = moved(family(one_latent, Encoder()), x)
    twin = copy.deepcopy(guide)
    draws = []
    for each in (guide, twin):
        torch.manual_seed(1)
        draws.append(each(x[:2])["z"])  # a new batch size: both still have their model
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in twin.parameters()}


def test_pickles_without_its_model():
    x = torch.randn(5, 3)
    guide = moved(AmortizedNormal(one_latent, nn.Linear(3, 4)), x)
    loaded = pickle.loads(pickle.dumps(guide))
    torch.testing.assert_close(loaded.median(x), guide.median(x))
    loaded(x)
    guide(x[:2])
    with pytest.raises(RuntimeError, match="was unpickled, which leaves its model behind"):
        loaded(x[:2])


def test_svi_with_the_global_store_trains_every_part():
    x = torch.randn(5, 3)
    guide = AmortizedNormal(one_latent, Encoder())
    svi = SVI(one_latent, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi.step(x)
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("local", [False, True])
def test_elbo_module_trains_with_a_torch_optimizer(family, local):
    x = torch.randn(5, 3)
    with pyro.settings.context(module_local_params=local):
        guide = family(one_latent, Encoder())
        loss = Trace_ELBO()(Shifted(), guide)
        loss(x)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        before = [p.detach().clone() for p in loss.parameters()]
        for _ in range(2):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
        assert all(not torch.equal(p, old) for p, old in zip(loss.parameters(), before, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_encoder_gives_a_float32_posterior(family):
    x = torch.randn(5, 3, dtype=torch.bfloat16)
    guide = family(one_latent, nn.Linear(3, 4, dtype=torch.bfloat16))
    parameters = guide.local_parameters(x)
    assert {value.dtype for value in parameters.values()} == {torch.float32}
    assert guide.get_posterior(x).sample().isfinite().all()
    assert {p.dtype for name, p in guide.named_parameters() if "encoder" not in name} == {torch.float32}


@pytest.mark.parametrize("family", GAUSSIAN)
def test_low_precision_guide_gives_a_float32_posterior(family):
    x = torch.randn(5, 3)
    guide = family(one_latent, nn.Linear(3, 4))
    guide(x)
    parameters = guide.bfloat16().local_parameters(x.bfloat16())
    assert {value.dtype for value in parameters.values()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_gives_a_float32_posterior(family):
    x = torch.randn(5, 3, dtype=torch.float32)
    guide = family(one_latent, nn.Linear(3, 4, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parameters = guide.local_parameters(x)
    assert {value.dtype for value in parameters.values()} == {torch.float32}


def test_the_first_call_may_be_under_inference_mode():
    x = torch.randn(5, 3)
    guide = AmortizedNormal(one_latent, Encoder())
    with torch.inference_mode():
        guide.posterior(x)
    guide.posterior(x).rsample().sum().backward()
    assert guide.scale_head.raw.weight.grad is not None


# What it refuses, with a sentence each


def with_latent(fn, **plate):
    def model(x):
        with pyro.plate("data", len(x), **plate):
            pyro.sample("z", fn(x))

    return model


def outside(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    one_latent(x)


def two_plates(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("words", 4):
        pyro.sample("w", dist.Normal(0.0, 1.0))


def sequential(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))


def observed(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)


learned = nn.Parameter(torch.tensor(2.0))

REFUSED = {
    "outside": (outside, "latent 'w' sits outside the plate of the observations.*AutoGuideList"),
    "two plates": (two_plates, "latent 'w' sits outside the plate of the observations.*globals='AutoNormal'"),
    "undeclared": (
        with_latent(lambda x: dist.Normal(torch.zeros(4, 1), 1.0)),
        r"latent 'z' has batch shape \(4, 5\) .* by a plate",
    ),
    "sequential": (sequential, "latent 'z0' sits in a sequential plate"),
    "none": (observed, "the model has no latent variable"),
    "discrete": (
        with_latent(lambda x: dist.Categorical(torch.ones(3))),
        r"latent 'z' is discrete \(Categorical\).*poutine.block\(model, hide=\['z'\]\)",
    ),
    "sphere": (
        with_latent(lambda x: dist.ProjectedNormal(torch.ones(3))),
        "spherical sample site 'z'",
    ),
    "support by observation": (
        with_latent(lambda x: dist.Uniform(x[:, 0] - 1, x[:, 0] + 1)),
        "the lower_bound of latent 'z' differs between observations",
    ),
    "learned support": (
        with_latent(lambda x: dist.Uniform(0.0, learned)),
        "the upper_bound of latent 'z' is a learned parameter",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_models_that_it_cannot_cover(case):
    model, sentence = REFUSED[case]
    guide = AmortizedNormal(model, Encoder())
    with pytest.raises(ValueError, match=sentence):
        guide(torch.randn(5, 3))


class Returning(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


FEATURES = {
    "tuple": (lambda x: (x, x), TypeError, r"\(Returning\) returned a tuple.*makes the heads"),
    "integers": (lambda x: x.long(), TypeError, "returned a torch.int64 tensor"),
    "rank 1": (lambda x: x[:, 0], ValueError, r"features of shape \(5,\).*needs \(batch, H\)"),
    "rank 4": (lambda x: x.reshape(5, 3, 1, 1), ValueError, r"shape \(5, 3, 1, 1\).*flatten"),
    "rows": (
        lambda x: x[:4],
        ValueError,
        "returned 4 rows of features, but plate 'data' .* has 5 observations",
    ),
}


@pytest.mark.parametrize("case", FEATURES)
def test_refuses_features_of_the_wrong_kind(case):
    result, error, sentence = FEATURES[case]
    guide = AmortizedNormal(one_latent, Returning(result))
    with pytest.raises(error, match=sentence):
        guide.posterior(torch.randn(5, 3))


def test_refuses_features_that_change_their_number():
    guide = AmortizedNormal(with_latent(lambda x: dist.Normal(0.0, 1.0)), nn.Identity())
    guide(torch.randn(5, 3))
    with pytest.raises(ValueError, match="4 features per observation, but the heads of this guide read 3"):
        guide(torch.randn(5, 4))


def test_refuses_a_model_that_changes_its_latents():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z" if len(x) > 3 else "y", dist.Normal(0.0, 1.0))

    guide = AmortizedNormal(model, Encoder())
    guide(torch.randn(5, 3))
    with pytest.raises(
        ValueError, match=r"the model has latents y .* in this call, but the guide was set up for z"
    ):
        guide(torch.randn(3, 3))


def test_refuses_constructor_arguments_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"encoder is a function; give a torch.nn.Module"):
        AmortizedNormal(one_latent, lambda x: x)
    with pytest.raises(TypeError, match="model is a Tensor; give a Pyro program"):
        AmortizedNormal(torch.zeros(3), Encoder())
    with pytest.raises(ValueError, match="init_scale is 0; give a positive number"):
        AmortizedNormal(one_latent, Encoder(), init_scale=0)
    with pytest.raises(ValueError, match="nonsense"):
        AmortizedNormal(one_latent, Encoder(), scale="nonsense")
    with pytest.raises(ValueError, match="transforms is 0; give a positive integer"):
        AmortizedFlow(one_latent, Encoder(), transforms=0)


def test_flow_of_one_dimension_is_refused():
    guide = AmortizedFlow(with_latent(lambda x: dist.Normal(0.0, 1.0)), Encoder())
    with pytest.raises(
        ValueError, match=r"needs at least 2 latent dimensions per observation.*AmortizedNormal"
    ):
        guide(torch.randn(5, 3))


def test_flow_says_what_it_has_no_closed_form_for():
    x = torch.randn(5, 3)
    with pytest.raises(NotImplementedError, match=r"flow over 8 latents.*get_posterior"):
        AmortizedFlow(many_latents, Encoder()).posterior(x)
    guide = AmortizedFlow(one_latent, Encoder())
    for ask in (guide.median, lambda x: guide.quantiles([0.5], x)):
        with pytest.raises(NotImplementedError, match="no closed form for medians and quantiles"):
            ask(x)


def test_sampling_before_the_first_call_is_refused():
    guide = AmortizedNormal(one_latent, Encoder())
    with pytest.raises(RuntimeError, match="after its first call"):
        guide.sample_sites({"loc": torch.zeros(5, 2), "log_scale": torch.zeros(5, 2)}, torch.randn(5, 3))
