import copy

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import nn
from torch.distributions import biject_to, constraints
from torch.testing import assert_close

from pyro_vae import scales
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MixturePrior, MLPDecoder, MLPEncoder, VampPrior
from pyro_vae.models.priors import FixedPrior, StandardNormal, as_prior

DISTRIBUTIONS = {
    "univariate": (lambda: dist.Laplace(0.5, 2.0), lambda z: dist.Laplace(0.5, 2.0).log_prob(z).sum(-1)),
    "one per latent": (
        lambda: dist.Normal(torch.arange(3.0), torch.ones(3)),
        lambda z: dist.Normal(torch.arange(3.0), 1.0).log_prob(z).sum(-1),
    ),
    "vector": (
        lambda: dist.MultivariateNormal(torch.ones(3), 2 * torch.eye(3)),
        lambda z: dist.Normal(1.0, 2**0.5).log_prob(z).sum(-1),
    ),
    "transformed": (
        lambda: dist.TransformedDistribution(
            dist.Normal(torch.zeros(3), 1.0), [AffineTransform(torch.ones(3), 2.0)]
        ).to_event(1),
        lambda z: dist.Normal(1.0, 2.0).log_prob(z).sum(-1),
    ),
}


def small_vae(prior):
    return VAE(MLPDecoder(3, [5], 6), 3, "bernoulli", prior=prior)


def some_data(n=8):
    return torch.randint(0, 2, (n, 6)).double()


def steps(model, guide, elbo, n=3):
    x = some_data(20)
    svi = SVI(model, guide, Adam({"lr": 1e-2}), elbo)
    return torch.tensor([svi.step(x) for _ in range(n)])


@pytest.mark.parametrize(("make", "log_prob"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_any_distribution_is_a_prior(make, log_prob):
    z, prior = torch.randn(5, 3), make()
    module = FixedPrior(prior, 3)
    assert (module().batch_shape, module().event_shape) == ((), (3,))
    assert_close(module().log_prob(z), log_prob(z))
    model = small_vae(prior)
    assert steps(model, AmortizedNormal(model, MLPEncoder(6, [4])), Trace_ELBO()).isfinite().all()


@pytest.mark.parametrize(("make", "log_prob"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_the_tensors_of_a_distribution_follow_the_model(make, log_prob):
    torch.set_default_dtype(torch.float32)
    model = small_vae(make())
    assert model.prior().sample().dtype == torch.float32
    double = copy.deepcopy(model).double()
    z = torch.randn(5, 3, dtype=torch.float64)
    assert_close(double.prior().log_prob(z), log_prob(z), rtol=1e-6, atol=1e-6)
    assert double.prior().sample().dtype == torch.float64
    assert model.prior().sample().dtype == torch.float32


def test_the_standard_normal_is_the_default_and_keeps_the_analytic_kl():
    model = small_vae("normal")
    assert isinstance(model.prior, StandardNormal)
    guide = AmortizedNormal(model, MLPEncoder(6, [4]))
    guide(some_data())
    with torch.no_grad():
        model.observation.network.output.weight.zero_()  # what is left of the loss is the KL alone
        losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide, some_data(1) * 0) for _ in range(5)])
    assert_close(losses, losses[:1].expand(5))


@pytest.mark.parametrize(
    ("prior", "error", "sentence"),
    [
        (dist.Normal(torch.zeros(2), 1.0), ValueError, r"batch shape \(2,\).*give \(\) and \(3,\)"),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), ValueError, r"event shape \(2,\)"),
        (dist.Normal(torch.zeros(3, requires_grad=True), 1.0), ValueError, "holds parameters"),
        ("laplace", TypeError, "^prior is 'laplace'; give"),
        (None, TypeError, "^prior is None; give"),
    ],
)
def test_wrong_priors_are_named(prior, error, sentence):
    with pytest.raises(error, match=sentence):
        as_prior(prior, 3)


def test_a_users_module_is_a_prior():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def forward(self):
            return dist.Normal(self.loc, 1.0).to_event(1)

    model = small_vae(Learned())
    steps(model, AmortizedNormal(model, MLPEncoder(6, [4])), Trace_ELBO())
    assert model.prior.loc.abs().min() > 0


@pytest.mark.parametrize("scale", ["softplus", "logvar"])
def test_mixture_density_and_start(scale):
    prior = MixturePrior(3, 4, scale=scales.get(scale))
    nn.init.normal_(prior.logits)
    z = torch.randn(5, 3)
    components = [dist.Normal(loc, 1.0).to_event(1).log_prob(z) for loc in prior.loc]
    expected = torch.logsumexp(prior.logits.log_softmax(0) + torch.stack(components, -1), -1)
    assert_close(prior().log_prob(z), expected)
    assert prior().sample(torch.Size([7])).shape == (7, 3)
    with pytest.raises(ValueError, match=r"^components is 0; give"):
        MixturePrior(3, 0)


def test_a_mixture_can_be_expanded_and_transformed():
    mixture = MixturePrior(3, 4)()
    assert biject_to(mixture.support) is not None
    assert isinstance(mixture.support.base_constraint, type(constraints.real))
    z = torch.randn(6, 5, 3)
    assert_close(mixture.expand([6, 5]).log_prob(z), mixture.log_prob(z))
    assert mixture.expand([6, 5]).sample().shape == (6, 5, 3)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_mixture_is_learned(elbo):
    model = small_vae(MixturePrior(3, 4))
    before = [p.detach().clone() for p in model.prior.parameters()]
    assert steps(model, AmortizedNormal(model, MLPEncoder(6, [4])), elbo).isfinite().all()
    assert all((p != b).any() for p, b in zip(model.prior.parameters(), before, strict=True))


def vamp_pair(x):
    model = small_vae(VampPrior(3, x[:4]))
    guide = AmortizedNormal(model, MLPEncoder(6, [4]))
    model.prior.posterior = guide.posterior
    return model, guide


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_vamp_prior_learns_its_pseudo_inputs_with_the_guide(elbo):
    x = some_data()
    model, guide = vamp_pair(x)
    assert steps(model, guide, elbo).isfinite().all()
    assert (model.prior.pseudo_inputs != x[:4]).any()
    # the guide's parameters stay its own
    assert [name for name, _ in model.prior.named_parameters()] == ["pseudo_inputs"]


def test_vamp_prior_is_the_average_posterior():
    x = some_data()
    model, guide = vamp_pair(x)
    guide(x)
    z = torch.randn(5, 3)
    components = guide.posterior(model.prior.pseudo_inputs).log_prob(z[:, None])
    assert_close(model.prior().log_prob(z), torch.logsumexp(components, -1) - torch.tensor(4.0).log())


def test_vamp_prior_in_another_dtype():
    torch.set_default_dtype(torch.float32)
    x = some_data().float()
    model, guide = vamp_pair(x)
    guide(x)
    double = copy.deepcopy(model).double()
    z = torch.randn(5, 3)
    assert_close(double.prior().log_prob(z.double()).float(), model.prior().log_prob(z), rtol=1e-4, atol=1e-4)
    assert next(guide.parameters()).dtype == torch.float32


def test_vamp_prior_without_a_posterior_says_so():
    with pytest.raises(RuntimeError, match=r"set prior\.posterior = guide\.posterior"):
        small_vae(VampPrior(3, some_data()))(some_data())
