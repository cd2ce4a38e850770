"""Repaired draws are those of the posterior, and what was good is left alone."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.guides.refining.steps import Normals
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods
from pyro_vae.posterior import from_pyro_svi
from pyro_vae.posterior.repair.climbing import Ladder
from pyro_vae.posterior.repair.ladder import ready, repair
from pyro_vae.posterior.repair.search import REFINED
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, dense, diagonal, observations
from tests.posterior.repair.targets import funnel


def assert_exact(tree, model, x, rows):
    """Means and standard deviations within five standard errors of half as many independent draws."""
    draws, scale = tree["posterior"]["z"][0][:, rows], model.covariance.diagonal().sqrt()
    independent = draws.sizes["draw"] / 2
    error = (draws.mean("draw").values - model.mean(x[rows]).numpy()) / scale.numpy()
    assert abs(error).max() < 5 / independent**0.5
    np.testing.assert_allclose(
        draws.std("draw"), scale.expand(len(rows), -1), rtol=5 / (2 * independent) ** 0.5
    )


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


def shares_of_bad(report):
    """Share of all observations with k̂ above 0.5 after each step that any of them tried."""
    tried = [step for step in report["tried"].values if report["ess"].sel(tried=step).notnull().any()]
    return [float((report["khat"].sel(tried=step) > 0.5).mean()) for step in tried]


def test_a_climb_from_near_the_posterior_ends_where_that_from_the_guide_does():
    """What is known of some observations is used, for the others the guide's draws are where it begins."""
    model = dense()
    x = observations(model, 20)
    group = np.arange(20)

    def climbed(known):
        ladder = Ladder(ready(model, GaussianGuide.exact(model, 0.5), x), 1000, 0, 4096, 2, 1)
        ladder.judge_guide()
        size = ladder.latent_dim
        near = Normals(model.mean(x).double(), torch.ones(20, size, dtype=torch.float64))
        near.loc[known:] = torch.nan
        given = (ladder.posterior(group), near) if known is not None else ()
        assert list(ladder.climb(group, ("resample",), *given)) == ["guide", "resample"]
        return ladder

    alone, unknown, told = map(climbed, (None, 0, 20))
    np.testing.assert_array_equal(alone.log_evidence, unknown.log_evidence)
    np.testing.assert_allclose(told.elbo, alone.elbo, atol=2 * REFINED)
    for ladder in (alone, told):
        exact = model.log_evidence(x).numpy()
        assert (abs(ladder.log_evidence - exact) < 5 * ladder.log_evidence_se).all()
        assert ladder.believable.all()


def test_a_guide_that_is_too_narrow_by_half():
    model = dense()
    x = observations(model, 20)
    tree = repair(model, GaussianGuide.exact(model, 0.5), x, draws=4000)
    report = tree["repair"].to_dataset()
    assert report["believable"].all()
    assert (report["step"] == "resample").all()
    before, after = shares_of_bad(report)
    assert before > 0.8
    assert after == 0
    assert_exact(tree, model, x, list(range(20)))


def test_the_evidence_is_that_of_the_model():
    model = dense()
    x = observations(model, 20)
    report = repair(model, GaussianGuide.exact(model, 0.3), x, draws=1000)["repair"]
    error = report["log_evidence"].values - model.log_evidence(x).numpy()
    assert abs(error).max() < 5 * report["log_evidence_se"].values.max()
    assert abs(error).max() < 0.1


def test_a_guide_that_is_far_too_wide():
    """Its k̂ is the best of all, and its draws are those of the prior."""
    model = diagonal(noise=0.2)
    x = observations(model, 6)
    tree = repair(model, GaussianGuide(model, scale=torch.ones(2)), x, draws=4000)
    report = tree["repair"].to_dataset()
    assert (report["khat"].sel(tried="guide") < 0.5).all()
    assert (report["step"] == "resample").all()
    assert report["believable"].all()
    assert_exact(tree, model, x, list(range(6)))


class FarOff(PyroModule):
    """A tenth of the width and a hundred standard deviations away."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.right = GaussianGuide.exact(model, 0.1)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc = x @ self.right.gain + 100 * self.right.scale_tril.diagonal().sum()
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.right.scale_tril))


def test_where_draws_cannot_go_gradients_lead():
    model = dense(latent_dim=10, features=20)
    x = observations(model, 5)
    tree = repair(model, FarOff(model), x, draws=2000, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    assert report["believable"].all()
    assert shares_of_bad(report)[-1] == 0
    assert_exact(tree, model, x, list(range(5)))


def test_good_observations_are_left_untouched_once_nothing_is_seen_elsewhere():
    seen = []

    class Watched(LinearGaussian):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    plain = dense()
    model = Watched(plain.weight)
    x = observations(model, 16)
    guide = HalfNarrow(model)
    good = (x[:, 0] > 0).numpy()
    tree = repair(model, guide, x, draws=1000, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    assert (report["step"].values[good] == "guide").all()
    assert (report["step"].values[~good] == "resample").all()
    for diagnostic in ("khat", "ess"):
        assert np.isnan(report[diagnostic].sel(tried=["resample", "local"]))[:, good].all()
    rows = [set(map(tuple, batch.tolist())) for batch in seen]
    others = set(map(tuple, x[~good].tolist()))
    own = max(i for i, batch in enumerate(rows) if not batch <= others)  # the last of the guide's own draws
    assert own < len(rows) - 1
    assert own + 1 <= 50  # preparation, all draws of each observation once, and a look around
    untouched = from_pyro_svi(model, guide, x, draws=1000)["posterior"]["z"].values
    np.testing.assert_array_equal(tree["posterior"]["z"].values[:, :, good], untouched[:, :, good])
    assert_exact(tree, plain, x, np.flatnonzero(~good).tolist())


def test_an_observation_is_repaired_alike_whoever_else_is_bad():
    model = dense()
    x = observations(model, 6)
    guide = GaussianGuide.exact(model, 0.5)
    both = repair(model, guide, x, draws=500, steps=("resample",))
    half = repair(model, HalfAsMany(guide), x, draws=500, steps=("resample",))
    same = np.flatnonzero((half["repair"]["step"] == "resample").values)
    assert 0 < len(same) < 6
    for which in ("khat", "log_evidence"):
        ours, theirs = (tree["repair"][which].values[..., same] for tree in (both, half))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class HalfAsMany(PyroModule):
    """The exact posterior for every second observation."""

    def __init__(self, guide: GaussianGuide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x):
        good = torch.arange(len(x)) % 2 == 0
        width = torch.where(good, 2.0, 1.0).to(x)
        with pyro.plate("data", len(x)):
            tril = self.guide.scale_tril * width[:, None, None]
            pyro.sample("z", dist.MultivariateNormal(x @ self.guide.gain, scale_tril=tril))


def test_a_fit_to_real_digits():
    """Of guides as people fit them, here in a second: most posteriors are bad, and hardly any stays so."""
    images = torch.as_tensor(load_digits().data, dtype=torch.float32)
    torch.manual_seed(0)
    likelihood = likelihoods.get("binomial", total_count=16)
    model = VAE(MLPDecoder(8, [64], 64), 8, likelihood)
    guide = AmortizedNormal(model, MLPEncoder(64, [64]))
    pyro_vae.fit(model, guide, images[:1000], epochs=10, lr=5e-3, progress=False)
    tree = repair(model, guide, images[1700:1760], draws=500, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    shares = shares_of_bad(report)
    assert shares[0] > 0.8
    assert (np.diff(shares) < 0).all()
    assert shares[-1] < 0.05
    assert (report["believable"] | (report["step"] == "local")).all()


def test_an_exact_guide_stops_at_once():
    model = dense()
    x = observations(model, 5)
    report = repair(model, GaussianGuide.exact(model), x, draws=100)["repair"]
    assert (report["step"] == "guide").all()
    assert report.attrs["latent_dim"] == 3
    assert "the prior, draws for other observations" in report.attrs["looked_from"]
    assert "modes to which none of the starts leads" in report.attrs["not_looked_at"]
    alone = repair(model, GaussianGuide.exact(model), x, draws=100, observations=[2])["repair"]
    assert "other observations" not in alone.attrs["looked_from"]


def test_nuts_from_a_guide_that_covers_an_edge():
    """Its draws are the posterior's; whether so few are believed is for R-hat to say."""
    model, x = diagonal(), observations(diagonal(), 1)
    guide = GaussianGuide(model, scale_tril=0.05 * torch.eye(2))
    tree = repair(model, guide, x, draws=300, steps=("nuts",), chains=2, warmup=100)
    report = tree["repair"].to_dataset()
    assert report["step"].item() == "nuts"
    assert not report["believable"].item() or report["rhat"].item() <= 1.01
    assert tree["posterior"]["z"].shape == (1, 300, 1, 2)
    scale = model.covariance.diagonal().sqrt().numpy()
    off = (tree["posterior"]["z"].mean(("chain", "draw")).values - model.mean(x).numpy()) / scale
    assert abs(off).max() < 0.4  # some 100 of the draws are effective
    np.testing.assert_allclose(tree["posterior"]["z"].std(("chain", "draw"))[0] / scale, 1.0, atol=0.3)


def test_what_stays_bad_is_marked():
    tree = repair(*funnel(20, 4.0, n=3).pair, draws=200, steps=("resample",))
    report = tree["repair"].to_dataset()
    assert not report["believable"].any()
    assert (report["step"] == "resample").all()
    assert np.isfinite(tree["posterior"]["z"]).all()


def test_densities_that_are_no_numbers_condemn_their_observation_only():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("broken", torch.where(x < 0, torch.nan, 0.0) + 0 * z)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.2))

    tree = repair(model, guide, torch.tensor([1.0, -1.0]), draws=500, steps=("resample", "local"))
    report = tree["repair"].to_dataset()
    assert report["step"].values.tolist() == ["resample", "local"]
    assert report["believable"].values.tolist() == [True, False]
    assert (report["khat"][:, 1] == np.inf).all()
    assert np.isfinite(tree["posterior"]["z"]).all()


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
