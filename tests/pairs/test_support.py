"""Data that no distribution of the model can have made are blamed by value and row; other faults by cause."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.svi import NonFiniteError

Model = Callable[[Tensor], None]
SHARES = torch.linspace(0.01, 0.99, 200)


def observing(make: Callable[[Tensor], Any]) -> Model:
    """A latent for each row, and data from the distribution that is made of it."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", make(z), obs=x)

    return model


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def fit(model: Any, guide: Any, x: Any, **options: Any) -> pyro_vae.Fit:
    return pyro_vae.fit(model, guide, x, **({"epochs": 1, "progress": False} | options))


def beta(z: Tensor) -> Any:
    return dist.Beta(z.exp(), 2.0)


def with_one(x: Tensor, row: int, value: float) -> Tensor:
    x = x.clone()
    x[row] = value
    return x


CASES = {
    "zeros under a Beta": (beta, with_one(SHARES, 7, 0.0), r"data holds 0 in row 7.*Beta.*between 0 and 1"),
    "ones in a later batch": (beta, with_one(SHARES, 199, 1.0), r"data holds 1 in row 199.*Beta.*squeeze"),
    "a zero under a Gamma": (
        lambda z: dist.Gamma(z.exp(), 1.0),
        with_one(SHARES, 150, 0.0),
        r"data holds 0 in row 150.*Gamma.*above 0.*mass at 0",
    ),
    "halves under a Poisson": (
        lambda z: dist.Poisson(z.exp()),
        with_one(SHARES.round(), 131, 0.5),
        r"data holds 0.5 in row 131.*Poisson.*whole numbers of at least 0",
    ),
    "labels that count from 1": (
        lambda z: dist.Categorical(logits=z[..., None].expand(*z.shape, 3)),
        torch.arange(200) % 3 + 1,
        r"data holds 3 in row 2.*Categorical.*whole numbers from 0 to 2",
    ),
    "an empty part of a composition": (
        lambda z: dist.Dirichlet(z.exp()[..., None].expand(*z.shape, 3)),
        with_one(torch.full((200, 3), 1 / 3), 190, 0.5) * torch.tensor([1.0, 1.0, 1.0]),
        r"data holds \[0.5, 0.5, 0.5\] in row 190.*Dirichlet.*add up to 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fit_blames_the_row(name: str) -> None:
    make, data, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence):
        fit(observing(make), guide, data)


@pytest.mark.parametrize("name", ["ones in a later batch", "halves under a Poisson"])
@pytest.mark.parametrize(
    "ask",
    [pyro_vae.diagnose, pyro_vae.from_pyro_svi, pyro_vae.refine, pyro_vae.repair, pyro_vae.active_units],
)
def test_diagnostics_blame_the_row(name: str, ask: Callable[..., Any]) -> None:
    make, data, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence):
        ask(observing(make), guide, data)


def test_validation_data_are_looked_at() -> None:
    with pytest.raises(ValueError, match="validation holds 1 in row 3"):
        fit(observing(beta), guide, SHARES, validation=with_one(SHARES, 3, 1.0))


def test_batches_of_a_loader_are_looked_at_as_they_come() -> None:
    loader = DataLoader(TensorDataset(with_one(SHARES, 199, 1.0)), batch_size=50)
    with pytest.raises(ValueError, match="a batch of data holds 1 in row 49"):
        fit(observing(beta), guide, loader)


def test_files_are_looked_at_piece_by_piece(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", with_one(SHARES, 199, 1.0).numpy())
    with pytest.raises(ValueError, match="data holds 1 in row 199"):
        fit(observing(beta), guide, np.load(tmp_path / "x.npy", mmap_mode="r"))


def test_a_part_of_the_data_is_looked_at_in_place() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.sum(-1), 1.0))
            pyro.sample("y", beta(z), obs=y[:, 1])

    y = torch.rand(200, 2) * 0.9 + 0.05
    y[160, 1] = 1.0
    with pytest.raises(ValueError, match=r"data\[1\] holds 1 in row 160"):
        fit(model, lambda x, _y: guide(x), (torch.randn(200, 3), y))
    y[160, 1], y[160, 0] = 0.5, 1.0  # which nobody observes
    assert fit(model, lambda x, _y: guide(x), (torch.randn(200, 3), y)).history["nonfinite"].sum() == 0


def test_what_may_be_there_is_left_alone() -> None:
    """Masked rows, values that a user has told torch not to validate, and ends that have a density."""
    missing = with_one(SHARES, 199, 0.5)

    def masked(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", beta(z).mask(x < 1), obs=x)

    fit(masked, guide, missing)
    grey = observing(lambda z: dist.Bernoulli(logits=z, validate_args=False))
    fit(grey, guide, SHARES)
    pyro_vae.diagnose(grey, guide, SHARES, draws=50)
    flat = observing(lambda z: dist.Beta(torch.ones_like(z), torch.ones_like(z)))
    fit(flat, guide, with_one(with_one(SHARES, 0, 0.0), 1, 1.0))


def test_steps_that_are_never_finite_are_no_fit() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("outside", x.new_full((len(x),), -torch.inf))

    with pytest.raises(NonFiniteError, match="none of the steps was finite"):
        fit(model, guide, SHARES, steps=2)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


X = torch.linspace(-1.0, 1.0, 1500).reshape(300, 5)


def normal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 5]).to_event(1), obs=x)


def without_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 5), 1.0).to_event(1), obs=x)


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        loc = z.sum(-1, keepdim=True) + 1.0 * k[..., None]
        pyro.sample("x", dist.Normal(loc.expand(*loc.shape[:-1], 5), 1.0).to_event(1), obs=x)


def continuous_guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


WRONG = {
    "a lazy encoder": (normal, lambda m: AmortizedNormal(m, Lazy()), r"'encoder.inner', a LazyLinear.*once"),
    "no plate": (
        without_plate,
        lambda m: AmortizedNormal(m, nn.Linear(5, 3)),
        "'z' has a value for each.*plate",
    ),
    "no plate, an autoguide": (
        without_plate,
        AutoNormal,
        r"'z' has independent values of shape \[128\] in no plate",
    ),
    "a discrete latent": (
        mixture,
        lambda m: AmortizedNormal(m, nn.Linear(5, 3)),
        r"'k' is discrete \(Categorical\).*TraceEnum_ELBO.*hide=\['k'\]",
    ),
    "a discrete latent, an autoguide": (
        mixture,
        AutoNormal,
        r"'k' is discrete, and AutoNormal.*hide=\['k'\]",
    ),
    "a discrete latent, no guide for it": (
        mixture,
        lambda _: continuous_guide,
        "no site 'k', a discrete latent.*config_enumerate",
    ),
}


def with_features_in_a_plate(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_at_dim_minus_2(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("ask", [fit, pyro_vae.diagnose], ids=["fit", "diagnose"])
def test_the_plates_are_named_where_data_lie_the_other_way(ask: Any) -> None:
    x = torch.zeros(3, 40)
    sentence = (
        r"site 'x' observes values of shape \(3, 40\), and its plates, 'data' of size 3 at dim -2 and "
        r"'features' of size 3 at dim -1, make them \(3, 3\); give data\.T"
    )
    with pytest.raises(ValueError, match=sentence):
        ask(with_features_in_a_plate, guide_at_dim_minus_2, x)
    pyro_vae.diagnose(with_features_in_a_plate, guide_at_dim_minus_2, x.T, draws=30)


@pytest.mark.parametrize("name", WRONG)
def test_the_cause_is_named_and_no_remedy_that_does_not_apply(name: str) -> None:
    model, make, sentence = WRONG[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        fit(model, make(model), X)
    told = str(caught.value)
    assert "shape and dtype" not in told
    assert "\n" not in told


def test_labels_that_the_programs_do_not_take_are_named() -> None:
    guide = AmortizedNormal(normal, nn.Linear(5, 3))
    with pytest.raises(TypeError, match=r"data come as 2 arguments, and .* takes 1; give the parts"):
        fit(normal, guide, (X, torch.zeros(300)))


def test_a_guide_of_another_model_and_an_unpickled_one_are_named() -> None:
    model, other = (pyro_vae.models.VAE(nn.Linear(k, 5), k, "normal") for k in (2, 3))
    guide = AmortizedNormal(other, nn.Linear(5, 3))
    with pytest.raises(ValueError, match="the guide was made for another VAE"):
        fit(model, guide, X)
    fit(other, guide, X)
    again = pickle.loads(pickle.dumps(guide))
    with pytest.raises(ValueError, match=r"an AmortizedNormal, was unpickled.*make it anew"):
        pyro_vae.diagnose(other, again, X)


def test_a_lazy_layer_is_served_once_it_has_been_called() -> None:
    encoder = Lazy()
    with pytest.raises(ValueError, match=r"'encoder\.inner'"):
        AmortizedNormal(normal, encoder).posterior(X)
    encoder(X[:2].to(torch.get_default_dtype()))
    assert fit(normal, AmortizedNormal(normal, encoder), X).engine


def test_an_enumerated_latent_is_fitted_on_batches_that_do_not_divide_the_data() -> None:
    fitted = fit(
        config_enumerate(mixture), continuous_guide, X, objective=TraceEnum_ELBO(max_plate_nesting=1)
    )
    assert torch.isfinite(torch.as_tensor(fitted.history["loss"].values)).all()
