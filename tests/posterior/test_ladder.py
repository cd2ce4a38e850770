"""Repaired draws are those of the posterior, and what was good is left alone."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule

from pyro_vae.posterior import from_pyro_svi
from pyro_vae.posterior.ladder import repair
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, diagonal, observations

pytestmark = pytest.mark.arviz


def assert_exact(tree, model, x, rows):
    """Means within 0.1 standard deviations and standard deviations within 10%, for these observations."""
    draws, scale = tree["posterior"]["z"][0][:, rows], model.covariance.diagonal().sqrt()
    error = (draws.mean("draw").values - model.mean(x[rows]).numpy()) / scale.numpy()
    assert abs(error).max() < 0.1
    np.testing.assert_allclose(draws.std("draw"), scale.expand(len(rows), -1), rtol=0.1)


class HalfNarrow(PyroModule):
    """Exact where the first feature is positive, else too narrow by half and beside the mean."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.right = GaussianGuide.exact(model)

    def forward(self, x):
        loc = x @ self.right.gain
        bad = (x[..., 0] <= 0).to(x)
        tril = self.right.scale_tril * (1 - bad[..., None, None] / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc + 0.3 * bad[..., None], scale_tril=tril))


def test_a_guide_that_is_too_narrow_by_half():
    model = dense()
    x = observations(model, 20)
    tree = repair(model, GaussianGuide.exact(model, 0.5), x, draws=4000, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    assert report["believable"].all()
    assert set(report["step"].values) <= {"guide", "resample", "local"}
    share = [float((report["khat"].sel(tried=step) > 0.5).mean()) for step in ("guide", "resample", "local")]
    assert share[0] > 0.8
    assert share[2] == 0
    repaired = np.flatnonzero(report["step"] != "guide").tolist()
    assert_exact(tree, model, x, repaired)


def test_good_observations_are_left_untouched_and_cost_nothing():
    seen = []

    class Watched(LinearGaussian):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    plain = dense()
    model = Watched(plain.weight)
    x = observations(model, 16)
    guide = HalfNarrow(model)
    good = (x[:, 0] > 0).numpy()
    tree = repair(model, guide, x, draws=1000, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    assert (report["step"].values[good] == "guide").all()
    assert (report["step"].values[~good] != "guide").any()
    np.testing.assert_array_equal(np.isnan(report["khat"].sel(tried="local"))[good], True)
    climbing = int((report["step"] != "guide").sum())
    after = seen[-seen[::-1].index(len(x)) :]  # the guide's own draws
    assert len(after) > 400
    assert max(after) <= climbing
    own = from_pyro_svi(model, guide, x, draws=1000)["posterior"]["z"].values
    np.testing.assert_array_equal(tree["posterior"]["z"].values[:, :, good], own[:, :, good])
    assert_exact(tree, plain, x, np.flatnonzero(report["step"] == "local").tolist())


def test_an_exact_guide_stops_at_once():
    model = dense()
    x = observations(model, 5)
    report = repair(model, GaussianGuide.exact(model), x, draws=100)["repair"]
    assert (report["step"] == "guide").all()
    assert report.attrs["latent_dim"] == 3


def test_nuts_where_the_family_cannot():
    """Two modes beside each other; a Normal covers one, and what it misses its weights do not show."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.StudentT(1.5, 3 * z.pow(3), 0.05), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * torch.ones_like(x), 0.02))

    tree = repair(model, guide, torch.tensor([0.0]), draws=300, steps=("nuts",), chains=2, warmup=100)
    report = tree["repair"].to_dataset()
    assert report["step"].item() == "nuts"
    assert report["believable"].item()
    assert report["rhat"].item() <= 1.01
    assert tree["posterior"]["z"].shape == (1, 300, 1)
    assert float(tree["posterior"]["z"].std()) > 0.1


def test_what_stays_bad_is_marked():
    model = diagonal()
    x = observations(model, 3)
    tree = repair(model, GaussianGuide.exact(model, 0.1), x, draws=200, steps=("resample",))
    report = tree["repair"].to_dataset()
    assert not report["believable"].any()
    assert (report["step"] == "resample").all()


def test_guides_with_parameters_for_each_observation():
    model = diagonal()
    x = observations(model, 4)
    guide = AutoNormal(model)
    guide(x)
    tree = repair(model, guide, x, draws=2000, steps=("local",))
    assert tree["repair"]["believable"].all()
    assert_exact(tree, model, x, list(range(len(x))))


def test_some_observations_and_a_file(tmp_path):
    model = diagonal()
    x = observations(model, 6)
    tree = repair(model, GaussianGuide.exact(model, 0.9), x, draws=100, observations=[4, 2])
    assert tree["repair"]["observation"].values.tolist() == [4, 2]
    tree.to_netcdf(tmp_path / "repair.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "repair.nc", engine="h5netcdf") as again:
        assert again["repair"]["step"].values.tolist() == tree["repair"]["step"].values.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": ("pray",)}, r"steps has 'pray'; the steps are \['resample', 'local', 'nuts'\]"),
        ({"draws": 10}, "draws is 10"),
        ({"chains": 1}, "chains is 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    model = diagonal()
    with pytest.raises(ValueError, match=message):
        repair(model, GaussianGuide.exact(model), observations(model, 2), **arguments)
