import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_vae import scales
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from pyro_vae.models.likelihoods import (
    Binomial,
    Categorical,
    ContinuousBernoulli,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
)

LIKELIHOODS = [
    "bernoulli",
    Binomial(3),
    Categorical(4),
    ContinuousBernoulli(),
    NegativeBinomial("predicted"),
    Normal(),
    Normal(scales.get("softplus"), dispersion="feature"),
    Normal(scale=0.5),
    Poisson(),
    StudentT(dispersion="predicted"),
]


def small_vae(likelihood="bernoulli", **kwargs):
    outputs = 1 if isinstance(likelihood, str) else likelihood.outputs
    return VAE(MLPDecoder(2, [5], 6, outputs=outputs), 2, likelihood, **kwargs)


def some_data(n=4):
    """0 or 1, which every likelihood takes."""
    return torch.randint(0, 2, (n, 6)).double()


def free_particles(model, guide):
    return Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)(model, guide)


def test_sites_plate_and_joint_density():
    model, x = small_vae(), some_data()
    trace = poutine.trace(model).get_trace(x)
    assert [name for name, node in trace.nodes.items() if node["type"] == "sample"] == ["data", "z", "x"]
    (frame,) = trace.nodes["z"]["cond_indep_stack"]
    assert (frame.name, frame.dim, frame.size) == ("data", -1, 4)
    z = trace.nodes["z"]["value"]
    expected = dist.Normal(0, 1).log_prob(z).sum() + model.decode(z).log_prob(x).sum()
    assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize("leading", [(), (4,), (3, 4), (2, 1, 4)])
@pytest.mark.parametrize(
    "decoder", [MLPDecoder(2, [5], 6), ConvDecoder(2, [3], (1, 2, 3)), nn.Sequential(nn.Linear(2, 6))]
)
def test_decode_takes_any_leading_dimensions(decoder, leading):
    model = VAE(decoder.double(), 2, "bernoulli")
    p = model.decode(torch.randn(*leading, 2))
    assert (p.batch_shape, p.event_shape) == (leading, model.event_shape)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_svi_moves_every_parameter(likelihood, elbo):
    model = small_vae(likelihood)
    guide = AmortizedNormal(model, MLPEncoder(6, [5]))
    x = some_data(20)
    guide(x)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi = SVI(model, guide, Adam({"lr": 1e-2}), elbo())
    losses = [svi.step(x) for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_particles_draws_and_prediction(likelihood):
    model, x = small_vae(likelihood), some_data()
    guide = AmortizedNormal(model, MLPEncoder(6, [5]))
    loss = free_particles(model, guide)(x)
    loss.backward()
    assert loss.isfinite()
    draws = Predictive(poutine.uncondition(model), guide=guide, num_samples=7, parallel=True)(x)
    assert draws["x"].shape == (7, 4, 6)
    assert model.sample(5).shape == (5, 6)
    assert not model.sample(5).requires_grad


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_one_captured_graph_gives_what_pyro_gives(likelihood):
    """Nothing in the forward pass is a number to Python: a graph made on one batch serves another."""
    model = small_vae(likelihood)
    guide = AmortizedNormal(model, MLPEncoder(6, [5]))
    x, other = some_data(), some_data()
    guide(x)

    def elbo(x):
        latents = poutine.trace(guide).get_trace(x)
        joint = poutine.trace(poutine.replay(model, latents)).get_trace(x)
        return joint.log_prob_sum() - latents.log_prob_sum()

    with pyro.validation_enabled(False):
        graph = make_fx(elbo, _allow_non_fake_inputs=True)(x)
        torch.manual_seed(3)
        captured = graph(other)
        torch.manual_seed(3)
        assert_close(captured, elbo(other))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_a_copy_in_float64_agrees(likelihood):
    torch.set_default_dtype(torch.float32)
    model, x = small_vae(likelihood), some_data()
    z = torch.randn(4, 2)
    double = copy.deepcopy(model).double()
    condition = {"z": z.double()}
    joint = poutine.trace(poutine.condition(double, condition)).get_trace(x).log_prob_sum()
    assert joint.dtype == torch.float64
    single = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x.float()).log_prob_sum()
    assert_close(single.double(), joint, rtol=1e-4, atol=1e-3)
    assert next(model.parameters()).dtype == torch.float32


def test_nuts_samples_the_latents():
    model, x = small_vae(), some_data(2)
    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(x)
    assert mcmc.get_samples()["z"].shape == (5, 2, 2)


def test_images_and_convolutions():
    likelihood = Normal(dispersion="predicted")
    model = VAE(ConvDecoder(2, [4, 3], (2, 7, 5), outputs=2), 2, likelihood)
    guide = AmortizedNormal(model, ConvEncoder((2, 7, 5), [3, 4], 8))
    x = torch.randn(3, 2, 7, 5)
    loss = free_particles(model, guide)(x)
    assert loss.isfinite()
    assert model.event_shape == (2, 7, 5)
    assert model.sample(4).shape == (4, 2, 7, 5)


def test_state_dict_holds_parameters_only_and_loads():
    model = small_vae(Normal(dispersion="feature"))
    other = small_vae(Normal(dispersion="feature"))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert "observation.dispersion" in model.state_dict()
    other.load_state_dict(model.state_dict())
    z = torch.randn(3, 2)
    assert_close(other.decode(z).mean, model.decode(z).mean)


def test_the_decoder_is_probed_without_noise_or_side_effects():
    decoder = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout())
    state, rng = copy.deepcopy(decoder.state_dict()), torch.get_rng_state()
    model = VAE(decoder, 2, "bernoulli")
    assert model.event_shape == (6,)
    assert decoder.training
    assert torch.equal(rng, torch.get_rng_state())
    for name, value in decoder.state_dict().items():
        assert_close(value, state[name])


def test_a_decoder_of_another_dtype_is_followed():
    decoder = MLPDecoder(2, [5], 6).float()
    assert VAE(decoder, 2, "bernoulli").event_shape == (6,)


@pytest.mark.parametrize("decoder", [MLPDecoder(2, [], 6), ConvDecoder(2, [3], (1, 2, 3))])
def test_init_output_starts_at_the_mean(decoder):
    model = VAE(decoder.double(), 2, "bernoulli")
    nn.init.zeros_(decoder.output.weight)
    x = some_data(400).reshape(-1, *model.event_shape)
    model.init_output(x)
    start = model.decode(torch.randn(1, 2)).mean[0]
    # a convolution has one bias per channel, so its pixels start alike
    assert_close(start, x.mean(0), atol=0.02 if start.dim() == 1 else 0.15, rtol=0)


def test_init_output_says_what_a_foreign_decoder_lacks():
    with pytest.raises(TypeError, match=r"Linear has no set_output_bias"):
        VAE(nn.Linear(2, 6), 2, "bernoulli").init_output(some_data())


def test_the_likelihood_is_at_hand():
    likelihood = Binomial(3)
    assert small_vae(likelihood).likelihood is likelihood


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"x has shape \(4, 2, 3\).*give shape \(n, 6\)"):
        small_vae()(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match=r"features × 2"):
        VAE(MLPDecoder(2, [5], 7), 2, Normal(dispersion="predicted"))
    with pytest.raises(ValueError, match=r"The decoder gives shape \(1,\)"):
        VAE(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), 2, "bernoulli")
    with pytest.raises(ValueError, match="No likelihood is called 'bernouli'"):
        small_vae("bernouli")


def test_pyro_speaks_where_data_do_not_fit():
    with pytest.raises(ValueError, match="support"):
        poutine.trace(small_vae()).get_trace(0.5 * torch.ones(4, 6)).log_prob_sum()
