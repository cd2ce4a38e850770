"""refine() gives each observation a Normal of its own, and every diagnostic takes it as a guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae
from pyro_vae.guides import AmortizedNormal, Refined
from pyro_vae.guides.refining import steps as steps_module
from pyro_vae.models import PPCA, VAE, MLPDecoder, MLPEncoder
from tests.posterior.gaussians import GaussianGuide, dense, observations


def ppca(n=5):
    generator = torch.Generator().manual_seed(3)
    model = PPCA(torch.randn(4, 2, generator=generator), torch.zeros(4), 0.5)
    return model, torch.randn(n, 4, generator=generator)


def conv_pair():
    """A decoder that takes (rows, latent) only, so that draws and observations lie side by side."""
    decoder = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Unflatten(1, (2, 2, 2)), torch.nn.ConvTranspose2d(2, 1, 2, 2)
    )

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.dim() == 2
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(3), obs=x)

    guide = AmortizedNormal(model, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8)))
    return model, guide, torch.randn(4, 1, 4, 4)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_ppca_is_exact(dtype):
    model, x = ppca()
    guide = AmortizedNormal(model, torch.nn.Linear(4, 8))
    refined = pyro_vae.refine(model, guide, x, dtype=dtype)
    exact = model.posterior(x)
    torch.testing.assert_close(refined.loc, exact.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        refined.covariance_matrix, exact.covariance_matrix.expand(5, 2, 2), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(refined.elbo, model.log_evidence(x), rtol=0, atol=1e-5)
    assert refined.converged.all()
    assert (refined.elbo >= refined.elbo_before).all()
    assert len(refined) == 5
    assert "5 of them converged" in repr(refined)


def test_every_diagnostic_takes_it():
    model, x = ppca()
    refined = pyro_vae.refine(model, AmortizedNormal(model, torch.nn.Linear(4, 8)), x)
    for guide in (refined, Refined(AmortizedNormal(model, torch.nn.Linear(4, 8)))):
        report = pyro_vae.diagnose(model, guide, x, draws=100)
        torch.testing.assert_close(
            torch.as_tensor(report["log_evidence"].values), model.log_evidence(x), rtol=0, atol=1e-4
        )
        assert (report["khat"] < 0.5).all()
        tree = pyro_vae.from_pyro_svi(model, guide, x, draws=50)
        assert tree["posterior"]["z"].shape == (1, 50, 5, 2)
    gaps = pyro_vae.inference_gaps(model, refined, x, steps=40)
    assert abs(gaps["approximation_gap"]).max() < 0.05
    covered = pyro_vae.calibrate(model, guide, n=400)["coverage"].sel(level=0.9)
    assert abs(covered - 0.9).max() < 4 * (0.9 * 0.1 / 400) ** 0.5


def test_it_is_a_program_for_its_data_alone():
    model, x = ppca()
    refined = pyro_vae.refine(model, AmortizedNormal(model, torch.nn.Linear(4, 8)), x)
    assert refined(x)["z"].shape == (5, 2)
    assert refined.posterior().mean.shape == (5, 2)
    assert refined.quantiles([0.5], x)["z"].shape == (1, 5, 2)
    some = refined.posterior(x[[3, 0, 3]])
    torch.testing.assert_close(some.mean, refined.loc[[3, 0, 3]])
    assert refined(x[[3, 0, 3]])["z"].shape == (3, 2)
    tree = pyro_vae.from_pyro_svi(model, refined, x, draws=20, observations=[4, 1])
    assert tree["posterior"]["z"].shape == (1, 20, 2, 2)
    for other in (x + 1, x[:, :3]):
        with pytest.raises(ValueError, match="not among the 5 observations that this posterior was refined"):
            refined(other)
    with pytest.raises(ValueError, match="not among the 5 observations"):
        pyro_vae.diagnose(model, refined, x + 1, draws=50)


def test_draws_and_observations_side_by_side():
    model, guide, x = conv_pair()
    refined = pyro_vae.refine(model, guide, x)
    report = pyro_vae.diagnose(model, Refined(guide), x, draws=200)
    torch.testing.assert_close(
        torch.as_tensor(report["elbo"].values), refined.elbo.double(), rtol=0, atol=1e-3
    )


def test_blocks_do_not_matter(monkeypatch):
    torch.manual_seed(1)
    model = VAE(MLPDecoder(3, [8], 6), 3, "bernoulli")
    guide = AmortizedNormal(model, MLPEncoder(6, [8]))
    x = (torch.rand(7, 6) < 0.5).double()
    whole = pyro_vae.refine(model, guide, x)
    monkeypatch.setattr(steps_module, "POINTS", 12)
    monkeypatch.setattr("pyro_vae.posterior.refined.rows.POINTS", 12)
    parts = pyro_vae.refine(model, guide, x, chunk=5)
    torch.testing.assert_close(parts.loc, whole.loc)
    torch.testing.assert_close(parts.elbo, whole.elbo)


def test_plain_functions_with_parameters_in_the_store():
    def model(x):
        weight = pyro.param("weight", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    def guide(x):
        weight = pyro.param("weight_of_the_guide", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight * x, 0.1))

    x = torch.tensor([1.0, -3.0])
    pyro.get_param_store()["weight"] = torch.tensor(3.0)
    refined = pyro_vae.refine(model, guide, x)
    torch.testing.assert_close(refined.loc[:, 0], 3 * x / 10)
    assert set(pyro.get_param_store()) == {"weight"}


def test_a_fit_refines_its_guide():
    model, x = ppca(20)
    guide = AmortizedNormal(model, torch.nn.Linear(4, 8))
    fit = pyro_vae.fit(model, guide, x, epochs=1, progress=False)
    torch.testing.assert_close(fit.refined(steps=3).posterior(x).mean, model.posterior(x).mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"dtype": torch.int64}, "dtype is torch.int64; give torch.float32 or torch.float64"),
    ],
)
def test_bad_arguments(arguments, message):
    model = dense()
    x = observations(model, 3)
    with pytest.raises(ValueError, match=message):
        pyro_vae.refine(model, GaussianGuide.exact(model), x, **arguments)
