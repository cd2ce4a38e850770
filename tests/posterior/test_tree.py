"""The tree: its groups mean what ArviZ takes them for, and survive a file."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample

from pyro_vae.posterior import from_pyro_svi
from tests.posterior.gaussians import GaussianGuide, dense, diagonal, observations

pytestmark = pytest.mark.arviz


@pytest.fixture
def tree():
    model = diagonal()
    return from_pyro_svi(model, GaussianGuide.exact(model), observations(model, 6), draws=2000)


def test_groups_dimensions_and_one_chain(tree):
    groups = [
        "log_likelihood",
        "log_prior",
        "observed_data",
        "posterior",
        "posterior_predictive",
        "prior",
        "sample_stats",
    ]
    assert sorted(tree.children) == groups
    assert tree["posterior"]["z"].dims == ("chain", "draw", "observation", "latent")
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "observation", "feature")
    assert tree["observed_data"]["x"].dims == ("observation", "feature")
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "observation")
    assert tree["sample_stats"]["log_q"].dims == ("chain", "draw", "observation")
    assert tree["posterior"].sizes["chain"] == 1


def test_draws_have_the_moments_of_posterior_and_prior(tree):
    model = diagonal()
    x = observations(model, 6)
    np.testing.assert_allclose(tree["posterior"]["z"].mean("draw")[0], model.mean(x), atol=0.06)
    np.testing.assert_allclose(
        tree["posterior"]["z"].std("draw")[0], model.covariance.diagonal().sqrt().expand(6, 2), atol=0.04
    )
    assert abs(tree["prior"]["z"].mean(("chain", "draw"))).max() < 0.1
    np.testing.assert_allclose(tree["prior"]["z"].std(("chain", "draw")), 1, atol=0.08)
    np.testing.assert_array_equal(tree["observed_data"]["x"], x)


def test_predictive_draws_are_replicates_and_not_the_data(tree):
    """``Predictive`` with an amortized guide hands the data back."""
    model = diagonal()
    x = observations(model, 6).numpy()
    replicates = tree["posterior_predictive"]["x"][0]
    assert not (replicates == x).any()
    expected = model.mean(torch.tensor(x)) @ model.weight.T
    np.testing.assert_allclose(replicates.mean("draw"), expected, atol=0.08)
    spread = (model.weight @ model.covariance @ model.weight.T).diagonal() + model.noise**2
    np.testing.assert_allclose(replicates.var("draw"), spread.expand(6, 3), rtol=0.15)
    residual = replicates - tree["posterior"]["z"][0].values @ model.weight.T.numpy()
    np.testing.assert_allclose(residual.std(), model.noise, rtol=0.02)


def test_densities(tree):
    model = diagonal()
    z, stats = torch.tensor(tree["posterior"]["z"].values[0]), tree["sample_stats"]
    x = observations(model, 6)
    likelihood = dist.Normal(z @ model.weight.T, model.noise).log_prob(x).sum(-1)
    np.testing.assert_allclose(tree["log_likelihood"]["x"][0], likelihood)
    np.testing.assert_allclose(stats["log_p"][0], likelihood + dist.Normal(0, 1).log_prob(z).sum(-1))
    np.testing.assert_allclose(
        (stats["log_p"] - stats["log_q"])[0], model.log_evidence(x).expand(2000, 6), atol=1e-9
    )


def test_effective_sample_size_and_rhat_appear_nowhere(tree):
    names = {str(name).lower() for group in tree.subtree for name in group.variables}
    assert not any("ess" in name or "hat" in name for name in names)


def test_some_observations():
    model = dense()
    x = observations(model, 9)
    tree = from_pyro_svi(model, GaussianGuide.exact(model), x, draws=50, observations=[7, -1])
    assert tree["posterior"]["observation"].values.tolist() == [7, 8]
    np.testing.assert_array_equal(tree["observed_data"]["x"], x[[7, 8]])


@pytest.mark.parametrize(("given", "error"), [([9], IndexError), ([-10], IndexError), ([], ValueError)])
def test_observations_that_are_not_there(given, error):
    model = dense()
    with pytest.raises(error, match="observations"):
        from_pyro_svi(model, GaussianGuide.exact(model), observations(model, 9), observations=given)


def test_blocks_of_observations_and_draws_fill_the_arrays():
    model = dense()
    x = observations(model, 5)
    guide = GaussianGuide.exact(model)
    for chunk in (7, 120):
        tree = from_pyro_svi(model, guide, x, draws=50, chunk=chunk)
        weights = (tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"])[0]
        np.testing.assert_allclose(weights, model.log_evidence(x).expand(50, 5), atol=1e-9)
        assert len(np.unique(tree["posterior"]["z"])) == 50 * 5 * 3


@pytest.mark.parametrize("names", [("latent", "feature"), ("a", "b")])
def test_site_names_do_not_clash_with_dimensions(names):
    latent, seen = names

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(latent, dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample(seen, dist.Normal(z + w[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(latent, dist.Normal(x, 1.0).to_event(1))
            pyro.sample("w", dist.Normal(0.0, 1.0))

    tree = from_pyro_svi(model, guide, torch.randn(3, 2), draws=40)
    assert tree["posterior"][latent].shape == (1, 40, 3, 2)
    assert tree["posterior"]["w"].dims == ("chain", "draw", "observation")
    assert tree["observed_data"][seen].shape == (3, 2)


def test_history_becomes_the_group_loss():
    model = diagonal()
    history = xr.Dataset({"loss": ("step", [2.0, 1.5])}, {"step": [0, 1]}, {"units": "nats per observation"})
    tree = from_pyro_svi(model, GaussianGuide.exact(model), observations(model, 2), draws=40, history=history)
    xr.testing.assert_identical(tree["loss"].to_dataset(), history)


def test_a_file_gives_the_tree_back(tree, tmp_path):
    tree["loss"] = xr.DataTree(dataset=xr.Dataset({"loss": ("step", [2.0, 1.5])}))
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as handle:
        again = handle.load()
    assert again.equals(tree)
    assert again.attrs["model_name"] == "svi"


def test_arviz_takes_it(tree):
    import arviz_stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own, about one chain
        summary = arviz_stats.summary(tree, var_names="z", kind="stats", round_to=3)
    assert len(summary) == 12


class Weights(PyroModule):
    """A prior held as float32, which no conversion of the module reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](3, 1)
        prior = dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0)
        self.layer.weight = PyroSample(prior.expand([1, 3]).to_event(2))
        self.layer.to(torch.float32)

    def forward(self, x, y=None):
        mean = self.layer(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def test_a_prior_of_another_dtype_than_the_data_is_drawn_from():
    torch.set_default_dtype(torch.float32)
    x = torch.randn(12, 3)
    model = Weights()
    guide = AutoDiagonalNormal(model)
    guide(x, x.sum(-1))
    tree = from_pyro_svi(model, guide, (x, x.sum(-1)), draws=30)
    assert np.isfinite(tree["prior"]["layer.weight"].values).all()
