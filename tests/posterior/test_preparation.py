"""Every kind of pair that people write gives the same densities, and nothing of theirs is touched."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vae.posterior import (
    active_units,
    calibrate,
    diagnose,
    from_pyro_svi,
    inference_gaps,
    log_weights,
    repair,
)
from pyro_vae.posterior.evaluation.preparation import prepare
from tests import seeds
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, diagonal, observations

pytestmark = pytest.mark.arviz


class ExampleVAE(nn.Module):
    """In the style of Pyro's own example: methods of one module, networks by ``pyro.module``."""

    def __init__(self, features=6, latent_dim=2):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Linear(features, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, features)
        )

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros((x.shape[0], self.latent_dim))
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def bits(n=5, features=6):
    return (torch.rand(n, features, generator=seeds.generator(0)) > 0.5).float()


def brute_force(model, guide, x, z):
    """log p(x, z) − log q(z|x) of each observation on its own, by Pyro."""
    out = []
    for i in range(len(x)):
        site = {name: torch.as_tensor(value[i : i + 1]) for name, value in z.items()}
        given = poutine.condition(guide, site)
        q = poutine.trace(given).get_trace(x[i : i + 1]).log_prob_sum()
        p = poutine.trace(poutine.condition(model, site)).get_trace(x[i : i + 1]).log_prob_sum()
        out.append((p - q).item())
    return np.array(out)


def weights_of(model, guide, x, draws=40):
    """Log weights together with the draws that they belong to."""
    tree = from_pyro_svi(model, guide, x, draws=draws)
    stats = tree["sample_stats"]
    return (stats["log_p"] - stats["log_q"])[0], {name: value[0] for name, value in tree["posterior"].items()}


class TestWeightsEqualThoseOfPyro:
    def check(self, model, guide, x, rtol=1e-9):
        weights, draws = weights_of(model, guide, x)
        for s in (0, 17):
            z = {name: value[s].values for name, value in draws.items()}
            np.testing.assert_allclose(weights[s], brute_force(model, guide, x, z), rtol=rtol)

    def test_module_pair(self):
        model = dense()
        self.check(model, GaussianGuide.mean_field(model), observations(model, 6))

    def test_example_style(self):
        vae = ExampleVAE().eval()
        self.check(vae.model, vae.guide, bits().double())
        assert prepare(vae.model, vae.guide, bits()).layout == "broadcast"

    def test_plain_functions_with_params(self):
        def model(x):
            shift = pyro.param("shift", torch.tensor(0.3))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(shift, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, scale))

        self.check(model, guide, torch.randn(4))
        trained = torch.tensor(0.9)
        pyro.get_param_store()["scale"] = trained
        self.check(model, guide, torch.randn(4))
        assert set(pyro.get_param_store()) <= {"scale", "shift"}

    def test_two_latent_sites_of_which_one_depends_on_the_other(self):
        def model(x):
            with pyro.plate("data", len(x)):
                top = pyro.sample("top", dist.Normal(0.0, 1.0))
                z = pyro.sample("z", dist.Normal(top[..., None].expand(*top.shape, 3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x / 2, 0.8).to_event(1))
                pyro.sample("top", dist.Normal(z.mean(-1), 0.7))

        self.check(model, guide, torch.randn(5, 3))
        assert diagnose(model, guide, torch.randn(5, 3), 50).latent_dim == 4

    @pytest.mark.parametrize("latent", [dist.Gamma(2.0, 2.0), dist.LogNormal(0.0, 0.5)])
    def test_constrained_support(self, latent):
        def model(x):
            with pyro.plate("data", len(x)):
                rate = pyro.sample("rate", latent)
                pyro.sample("x", dist.Poisson(rate), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("rate", dist.LogNormal((x + 1).log() - 0.3, 0.5))

        self.check(model, guide, torch.tensor([0.0, 1.0, 5.0]))

    def test_tuple_data(self):
        def model(x, y):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(y, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))

        x, y = torch.randn(4), torch.randn(4)
        exact = dist.Normal(y, 2**0.5).log_prob(x)
        np.testing.assert_allclose(
            log_weights(model, guide, (x, y.numpy()), 40), exact[:, None].expand(4, 40)
        )

    def test_integer_data_stay_integers(self):
        def model(x):
            assert not x.is_floating_point()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Categorical(logits=z), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(nn.functional.one_hot(x, 3) / 2.0, 0.9).to_event(1))

        self.check(model, guide, torch.tensor([0, 2, 1]))

    def test_repeated_measurements_in_a_plate_of_their_own(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.plate("times", 4):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(-1) * 0.8, 5**-0.5))

        x = torch.randn(3, 4)
        exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1).log_prob(x)
        weights = log_weights(model, guide, x, 40)
        np.testing.assert_allclose(weights, exact[:, None].expand(3, 40))
        tree = from_pyro_svi(model, guide, x, 40)
        np.testing.assert_array_equal(tree["observed_data"]["x"], x)
        assert tree["posterior_predictive"]["x"].shape == (1, 40, 3, 4)

    def test_auxiliary_sites_of_pyro_autoguides(self):
        model, x = dense(), observations(dense(), 5)
        guide = AutoNormal(model)
        guide(x)
        pair = prepare(model, guide, x)
        assert pair.whole
        report = diagnose(model, guide, x, draws=4000)
        error = (report["log_evidence"] - model.log_evidence(x).numpy()) / report["log_evidence_se"]
        assert (report["elbo"] < report["log_evidence"]).all()
        assert np.isfinite(error).all()


class TestNetworksThatDoNotBroadcast:
    """They get each observation repeated: given draws in front some fail, and some are silently wrong."""

    class Pair(PyroModule):
        def __init__(self, decoder):
            super().__init__()
            self.decoder = decoder

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(x.dim() - 1), obs=x)

    class Guide(PyroModule):
        def __init__(self, features):
            super().__init__()
            self.encoder = nn.Linear(features, 2)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.7).to_event(1))

    def pair(self, decoder, shape):
        guide = self.Guide(int(np.prod(shape)))
        x = torch.randn(2, *shape)
        TestWeightsEqualThoseOfPyro().check(self.Pair(decoder).eval(), guide, x)
        return prepare(self.Pair(decoder), guide, x)

    def test_transposed_convolution(self):
        decoder = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 1, 4))
        assert self.pair(decoder, (1, 4, 4)).layout == "rows"

    def test_batch_norm_that_would_take_observations_for_features(self):
        norm = nn.BatchNorm1d(2)
        norm.running_mean += torch.tensor([1.0, -1.0])
        decoder = nn.Sequential(norm, nn.Linear(2, 2))
        assert self.pair(decoder, (2,)).layout == "rows"

    def test_softmax_over_the_wrong_dimension(self):
        assert self.pair(nn.Softmax(dim=1), (2,)).layout == "rows"

    def test_a_plain_network_broadcasts(self):
        assert self.pair(nn.Linear(2, 3), (3,)).layout == "broadcast"


class TestNothingOfTheUserIsTouched:
    def test_modules(self):
        vae = ExampleVAE().train()
        before = copy.deepcopy(vae.state_dict())
        diagnose(vae.model, vae.guide, bits(), 50)
        assert vae.training
        assert vae.decoder.training
        assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())

    def test_global_state(self):
        pyro.param("mine", torch.ones(2))
        vae, state = ExampleVAE(), torch.get_rng_state()
        numpy_state = np.random.get_state()[1].copy()
        diagnose(vae.model, vae.guide, bits(), 50)
        from_pyro_svi(vae.model, vae.guide, bits(), 50)
        assert list(pyro.get_param_store()) == ["mine"]
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()
        assert torch.get_default_dtype() == torch.float64
        assert pyro.settings.get("validate_distributions_pyro")

    def test_float32_modules_are_evaluated_in_float64(self):
        vae = ExampleVAE().float()
        pair = prepare(vae.model, vae.guide, bits())
        assert pair.dtype == torch.float64
        assert {p.dtype for p in vae.parameters()} == {torch.float32}

    def test_a_program_that_insists_on_float32_runs_in_it(self):
        class Stubborn(ExampleVAE):
            def guide(self, x):
                return super().guide(x.float())

        vae = Stubborn().float()
        assert prepare(vae.model, vae.guide, bits()).dtype is None

    def test_autoguides_keep_their_model(self):
        """Copying one takes the model away from the original."""
        model, x = diagonal(), observations(diagonal(), 3)
        guide = AutoNormal(model)
        guide(x)
        before = guide.model
        diagnose(model, guide, x, 50)
        assert guide.model is before

    def test_dropout_is_off(self):
        vae = ExampleVAE().train()
        a, b = (log_weights(vae.model, vae.guide, bits(), 30, seed=0) for _ in range(2))
        vae.eval()
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, log_weights(vae.model, vae.guide, bits(), 30, seed=0))


class TestParametersOfAnotherPairDoNotLeakIn:
    def test_two_pairs_with_the_same_names(self):
        """Pyro's own store would hand the second pair the first one's tensors."""
        first, second = ExampleVAE().eval(), ExampleVAE().eval()
        alone = log_weights(second.model, second.guide, bits(), 30).values
        svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for _ in range(3):
            svi.step(bits().double())
        np.testing.assert_array_equal(log_weights(second.model, second.guide, bits(), 30), alone)

    def test_model_and_guide_with_the_same_names(self):
        class Half(PyroModule):
            def __init__(self, size, guide):
                super().__init__()
                self.net = nn.Linear(size, size)
                self.scale = PyroParam(torch.tensor(0.5 if guide else 2.0), dist.constraints.positive)
                self.guide = guide

            def forward(self, x):
                with pyro.plate("data", len(x)):
                    if self.guide:
                        pyro.sample("z", dist.Normal(self.net(x), self.scale).to_event(1))
                    else:
                        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                        pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1), obs=x)

        model, guide = Half(2, False), Half(2, True)
        x = torch.randn(3, 2)
        weights, draws = weights_of(model, guide, x)
        z = torch.tensor(draws["z"].values)
        q = dist.Normal(guide.net(x), 0.5).log_prob(z).sum(-1)
        p = dist.Normal(0, 1).log_prob(z).sum(-1) + dist.Normal(model.net(z), 2.0).log_prob(x).sum(-1)
        np.testing.assert_allclose(weights, (p - q).detach())

    def test_param_statements_inside_a_module_keep_what_training_left(self):
        class Guide(PyroModule):
            def forward(self, x):
                scale = pyro.param("q_scale", torch.tensor(0.1))
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(x @ torch.eye(3, 2) * 0.8, scale).to_event(1))

        model = diagonal()
        x = observations(model, 4)
        pyro.param("q_scale", torch.tensor(0.5))
        np.testing.assert_allclose(weights_of(model, Guide(), x, 400)[1]["z"].std("draw"), 0.5, rtol=0.2)


class TestScalesAndMasks:
    def test_subsampling_and_annealing_do_not_scale_densities(self):
        def model(x):
            with pyro.plate("data", 1000, subsample=torch.arange(len(x))), poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

        x = torch.randn(6)
        report = diagnose(model, guide, x, 100)
        np.testing.assert_allclose(report["elbo"], dist.Normal(0.0, 2**0.5).log_prob(x))

    def test_masks_count(self):
        seen = torch.tensor([[True, True], [True, False]])

        def model(x, seen):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                for i in range(2):
                    with poutine.mask(mask=seen[:, i]):
                        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[:, i])

        def guide(x, seen):
            n = seen.sum(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x * seen).sum(-1) / (n + 1), (n + 1.0) ** -0.5))

        x = torch.randn(2, 2)
        report = diagnose(model, guide, (x, seen), 100)
        both = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 1).log_prob(x[0])
        one = dist.Normal(0.0, 2**0.5).log_prob(x[1, 0])
        np.testing.assert_allclose(report["log_evidence"], torch.stack([both, one]))


def test_factors_count_as_likelihood_and_are_no_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", dist.Normal(z, 1.0).log_prob(x))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(3)
    tree = from_pyro_svi(model, guide, x, 40)
    weights = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"])[0]
    np.testing.assert_allclose(weights, dist.Normal(0.0, 2**0.5).log_prob(x).expand(40, 3))
    assert list(tree["log_likelihood"].data_vars) == ["x"]
    assert list(tree["observed_data"].data_vars) == []


@pytest.mark.parametrize("n", [1, 2])
def test_an_autoguide_of_very_few_observations_stays_whole(n):
    model, x = dense(), observations(dense(), n)
    guide = AutoNormal(model)
    guide(x)
    assert np.isfinite(diagnose(model, guide, x, draws=60, chunk=30)["elbo"]).all()


class TestErrors:
    def test_site_missing_in_the_guide(self):
        model = diagonal()
        with pytest.raises(ValueError, match="the guide has no site 'z', which the model draws"):
            diagnose(model, lambda x: None, observations(model, 3))

    def test_site_unknown_to_the_model(self):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[..., :2], 1.0).to_event(1))
                pyro.sample("w", dist.Normal(0.0, 1.0))

        model = diagonal()
        with pytest.raises(ValueError, match="the guide draws 'w', which is no latent site of the model"):
            diagnose(model, guide, observations(model, 3))

    def test_global_latent(self):
        def model(x):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="site 'w' is not in a plate over the observations at dim -1"):
            active_units(model, guide, torch.randn(3))

    def test_joint_autoguide(self):
        model = diagonal()
        x = observations(model, 3)
        guide = AutoDiagonalNormal(model)
        guide(x)
        with pytest.raises(ValueError, match="site '_AutoDiagonalNormal_latent' is not in a plate"):
            active_units(model, guide, x)

    def test_the_users_own_error_is_the_cause(self):
        model = diagonal()
        with pytest.raises(ValueError, match="do not run on the first two observations") as caught:
            diagnose(model, GaussianGuide.exact(model), torch.randn(3, 7))
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_subsampling_inside_the_model(self):
        def guide(x):
            with pyro.plate("data", len(x), subsample_size=1) as rows:
                pyro.sample("z", dist.Normal(x[rows, :2], 1.0).to_event(1))

        model = diagonal()
        x = observations(model, 5)
        report = diagnose(model, guide, x)  # over all rows, each with its own draws

        def whole(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

        assert report.sizes == {"observation": 5}
        np.testing.assert_allclose(report["elbo"], diagnose(model, whole, x)["elbo"])


@pytest.mark.parametrize(
    "function", [diagnose, from_pyro_svi, calibrate, active_units, inference_gaps, repair]
)
class TestData:
    def test_neither_tensor_nor_array(self, function):
        model = diagonal()
        with pytest.raises(TypeError, match="data is a list; give a tensor, an array, or a tuple of them"):
            function(model, GaussianGuide.exact(model), data=[1.0, 2.0])

    @pytest.mark.parametrize("empty", [torch.zeros(0, 3), np.zeros((0, 3)), torch.tensor(1.0), ()])
    def test_empty(self, function, empty):
        model = diagonal()
        with pytest.raises(ValueError, match="data is empty; give at least one observation"):
            function(model, GaussianGuide.exact(model), data=empty)

    def test_lengths_that_differ(self, function):
        model = diagonal()
        with pytest.raises(ValueError, match="observations"):
            function(model, GaussianGuide.exact(model), data=(torch.zeros(2, 3), torch.zeros(3, 3)))

    def test_negative_seed(self, function):
        model = diagonal()
        with pytest.raises(ValueError, match="seed is -1; give an integer of at least 0"):
            function(model, GaussianGuide.exact(model, 0.5), data=observations(model, 4), seed=-1)


def test_one_observation():
    model = dense()
    x = observations(model, 1)
    report = diagnose(model, GaussianGuide.exact(model), x)
    np.testing.assert_allclose(report["elbo"], model.log_evidence(x))


def test_arrays_are_taken_as_tensors():
    model = LinearGaussian(torch.ones(2, 1))
    x = observations(model, 3)
    guide = GaussianGuide.exact(model, 0.9)
    a, b = (log_weights(model, guide, data, 30) for data in (x, x.numpy().astype(np.float32)))
    np.testing.assert_allclose(a, b, atol=1e-5)
