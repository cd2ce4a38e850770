"""Pairs that minibatches would lead elsewhere are refused before a step; losses are per observation."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae.guides import AmortizedNormal, AutoDiagonalNormal, AutoNormal
from pyro_vae.models import VAE

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(-1)


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)


def fit(model: Any, guide: Any, data: Any, **options: Any) -> pyro_vae.Fit:
    options = {"epochs": 1, "progress": False, "engine": "captured"} | options
    return pyro_vae.fit(model, guide, data, **options)


def regression(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.2), obs=y)


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled(x: Tensor, rows: Tensor) -> None:
    with pyro.plate("data", 20, subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 5.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_a_global_latent_has_the_posterior_of_all_data(engine: str) -> None:
    sds = []
    for size in (8, 20):
        torch.manual_seed(0)
        guide = AutoDiagonalNormal(regression)
        options = {"epochs": 600 * size // 20, "lr": 0.02, "engine": engine}
        fitted = fit(regression, guide, (X, Y), batch_size=size, **options)
        sds.append(guide.get_posterior().stddev.detach())
    torch.testing.assert_close(sds[0], sds[1], rtol=0.3, atol=0.0)  # a batch alone would give 1.6 times
    assert float(fitted.history["loss"][-50:].mean()) < 5


def test_an_autoguide_of_local_latents() -> None:
    guide = AutoNormal(local)
    with pytest.raises(ValueError, match=r"AutoNormal has parameters of its own.*batch_size=20"):
        fit(local, guide, Y, batch_size=10)
    loader = DataLoader(TensorDataset(Y), batch_size=20, shuffle=True)
    with pytest.raises(ValueError, match=r"DataLoader that shuffles, and AutoNormal .*give shuffle=False"):
        fit(local, AutoNormal(local), loader)


def grouped(y: Tensor, group: Tensor) -> None:
    with pyro.plate("groups", 10):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean[group], 1.0), obs=y)


def test_a_plate_of_as_many_groups_as_a_batch_has_rows() -> None:
    """Its latents are of all data, and are scaled against all of them."""
    guide = AutoNormal(grouped)
    fit(grouped, guide, (Y, torch.arange(20) // 2), batch_size=10, epochs=600, lr=0.02)
    low, high = guide.quantiles([0.1587, 0.8413])["mean"]
    sd = float(((high - low) / 2).mean())
    assert abs(sd / 3**-0.5 - 1) < 0.15  # two rows of each group, and a batch alone would give 2 ** -0.5


def means(x: Tensor) -> None:
    """A guide with a parameter for each row."""
    loc = pyro.param("loc", torch.zeros(len(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


@pytest.mark.parametrize("engine", ["eager", "captured"])
@pytest.mark.parametrize("make", [lambda: means, lambda: AutoNormal(local)], ids=["function", "AutoNormal"])
@pytest.mark.parametrize("source", [lambda y: y, TensorDataset], ids=["tensor", "data set"])
def test_a_batch_of_all_data_keeps_each_row_beside_its_parameter(engine: str, make: Any, source: Any) -> None:
    """A row's posterior is N(y / 2, 1 / 2); in another order at every epoch, all rows got their mean's."""
    fitted = fit(local, make(), source(Y), batch_size=20, epochs=300, lr=0.05, engine=engine)
    with torch.no_grad():
        draws = [pyro.poutine.trace(fitted.guide).get_trace(Y).nodes["z"]["value"] for _ in range(400)]
    off = torch.stack(draws).mean(0) - Y / 2
    assert float(off.square().mean()) < 0.1 * float((Y / 2).var())


def series(x: Tensor) -> None:
    phi = pyro.sample("phi", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(phi * x[:-1], 1.0).to_event(1), obs=x[1:])


def series_in_a_plate(x: Tensor) -> None:
    phi = pyro.sample("phi", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(x) - 1):
        pyro.sample("x", dist.Normal(phi * x[:-1], 1.0), obs=x[1:])


def series_step_by_step(x: Tensor) -> None:
    phi = pyro.sample("phi", dist.Normal(0.0, 1.0))
    for t in range(1, len(x)):
        pyro.sample(f"x{t}", dist.Normal(phi * x[t - 1], 1.0), obs=x[t])


def series_without_latents(x: Tensor) -> None:
    phi = pyro.param("phi", torch.tensor(0.0))
    pyro.sample("x", dist.Normal(phi * x[:-1], 1.0).to_event(1), obs=x[1:])


def regression_without_plate(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 0.2).to_event(1), obs=y)


SERIES = torch.linspace(-1.0, 2.0, 60).exp()
"""Each value is 1.052 times the one before."""


@pytest.mark.parametrize("model", [series, series_in_a_plate, series_step_by_step])
def test_a_series_is_not_fitted_in_pieces_of_rows_here_and_there(model: Any) -> None:
    with pytest.raises(
        ValueError, match=r"in no plate of that size, beside latent 'phi'.*give batch_size=60"
    ):
        fit(model, AutoNormal(model), SERIES, batch_size=20)
    if model is not series_step_by_step:
        guide = AutoNormal(model)
        fit(model, guide, SERIES, batch_size=60, epochs=400, lr=0.05)
        slope = float((SERIES[1:] * SERIES[:-1]).sum() / (1 + SERIES[:-1].square().sum()))
        assert abs(float(guide.median()["phi"]) - slope) < 0.1  # ten times the posterior's standard deviation


def test_rows_that_no_plate_declares_independent_come_as_a_whole() -> None:
    with pytest.raises(ValueError, match="'x' is in no plate of that size: nothing says"):
        fit(series_without_latents, lambda x: None, SERIES, batch_size=20)
    with pytest.raises(ValueError, match=r"'y' is in no plate .* beside latent 'w' of all data"):
        fit(regression_without_plate, AutoNormal(regression_without_plate), (X, Y), batch_size=10)


def test_two_subsamples() -> None:
    with pytest.raises(ValueError, match="AutoNormal draws another one; give the guide the same"):
        fit(subsampled, AutoNormal(subsampled), (Y, torch.arange(20)), batch_size=10)
    guide = AutoNormal(subsampled, create_plates=lambda x, rows: pyro.plate("data", 20, subsample=rows))
    fit(subsampled, guide, (Y, torch.arange(20)), batch_size=10)


def test_batch_norm_and_a_last_batch_of_one() -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model = VAE(nn.Linear(2, 3), 2, "normal")
    guide = AmortizedNormal(model, encoder)
    with pytest.raises(ValueError, match=r"batch_size is 19, .* a batch of 1, .*give batch_size=10"):
        fit(model, guide, X, batch_size=19)
    assert int(encoder[1].num_batches_tracked) == 0
    fit(model, guide, DataLoader(TensorDataset(X), batch_size=19, drop_last=True))


def test_a_loader_without_batches() -> None:
    model = VAE(nn.Linear(2, 3), 2, "normal")
    loader = DataLoader(TensorDataset(X), batch_size=32, drop_last=True)
    with pytest.raises(ValueError, match="DataLoader that yields no batch of its 20 observations"):
        fit(model, AmortizedNormal(model, nn.Linear(3, 4)), loader)


def without_size(x: Tensor) -> None:
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def at_dim_2(x: Tensor) -> None:
    with pyro.plate("features", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nested(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2), pyro.plate("words", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact(model: Any) -> Any:
    """The posterior of z, as a guide: its ELBO is the evidence."""

    def guide(x: Tensor) -> None:
        with pyro.poutine.block(), pyro.poutine.trace() as seen:
            model(x)
        site = seen.trace.nodes["z"]
        with pyro.poutine.block(hide_types=["param"]):
            shift = pyro.param("shift", torch.zeros(()))
        plates = [
            pyro.plate(f.name, None if f.size == -1 else f.size, dim=f.dim) for f in site["cond_indep_stack"]
        ]
        for plate in plates:
            plate.__enter__()
        pyro.sample("z", dist.Normal(x / 2 + 0.0 * shift, 0.5**0.5))
        for plate in reversed(plates):
            plate.__exit__(None, None, None)

    return guide


@pytest.mark.parametrize(("model", "data"), [(without_size, Y), (at_dim_2, X), (nested, X)])
def test_the_loss_is_per_observation(model: Any, data: Tensor) -> None:
    evidence = dist.Normal(0.0, 2**0.5).log_prob(data).sum() / len(data)
    whole = pyro_vae.svi.ELBO(analytic_kl=False)
    losses = fit(model, exact(model), data, batch_size=20, lr=1e-9, objective=whole).history["loss"]
    assert float(losses[0]) == pytest.approx(-float(evidence), rel=1e-4)


def test_data_outside_of_the_support_are_blamed() -> None:
    decoder = nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    with pytest.raises(
        ValueError, match=r"data holds 0\.\d+ in row 0, column 0, where the Bernoulli of site 'x'.*0 or 1"
    ):
        fit(model, AmortizedNormal(model, nn.Linear(3, 4)), torch.rand(8, 3))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"schedule": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o)},
            "schedule made a ReduceLROnPlateau.*CosineAnnealingLR",
        ),
        ({"optimizer": torch.optim.LBFGS}, r"optimizer made an LBFGS.*torch\.optim\.Adam"),
        ({"optimizer": torch.optim.SparseAdam}, r"optimizer made a SparseAdam.*torch\.optim\.Adam"),
        (
            {"schedule": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=3), "epochs": 9},
            r"schedule made an OneCycleLR of 3 steps, and this fit takes (\d+); give total_steps=\1,",
        ),
    ],
)
def test_what_cannot_step_is_refused(options: dict[str, Any], sentence: str) -> None:
    model = VAE(nn.Linear(2, 3), 2, "normal")
    with pytest.raises((TypeError, ValueError), match=sentence):
        fit(model, AmortizedNormal(model, nn.Linear(3, 4)), X, **options)
