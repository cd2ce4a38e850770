"""What people bring in the place of a tensor is taken everywhere, or refused everywhere with a remedy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae
from pyro_vae.arrays import plain_array

X = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")
COUNTS = np.random.default_rng(0).poisson(3.0, size=(6, 3))
READ_ONLY = X.copy()
READ_ONLY.setflags(write=False)

TAKEN: dict[str, Any] = {
    "an array": X,
    "big-endian": X.astype(">f4"),
    "float64": X.astype("f8"),
    "long doubles": X.astype(np.longdouble),
    "backwards": X[::-1].copy()[::-1],
    "columns backwards": np.ascontiguousarray(X[:, ::-1])[:, ::-1],
    "Fortran's order": np.asfortranarray(X),
    "read-only": READ_ONLY,
    "nothing masked": np.ma.masked_array(X, np.zeros_like(X, dtype=bool)),
    "a data frame": pd.DataFrame(X),
    "a frame of nullable numbers": pd.DataFrame(X).astype("Float32"),
    "a data array": xr.DataArray(X, dims=("row", "column")),
    "a list of rows": list(X),
    "a list of tensors": list(torch.as_tensor(X)),
    "a list of series": [pd.Series(row) for row in X],
    "a tensor with a gradient": torch.as_tensor(X).requires_grad_(),
    "a loader": DataLoader(TensorDataset(torch.as_tensor(X)), batch_size=4),
    "a data set": TensorDataset(torch.as_tensor(X)),
}
WHOLE: dict[str, Any] = {
    "int64": COUNTS,
    "unsigned": COUNTS.astype("u4"),
    "big-endian": COUNTS.astype(">i2"),
    "bytes": COUNTS.astype("u1"),
    "a frame": pd.DataFrame(COUNTS),
}
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "masked": (np.ma.masked_array(X, X > 1), ValueError, r"masked array, \d of .*filled"),
    "csr": (scipy.sparse.csr_matrix(X), TypeError, r"csr_matrix, sparse; give .*\.toarray\(\)"),
    "coo": (scipy.sparse.coo_array(X), TypeError, r"coo_array, sparse; give .*\.toarray\(\)"),
    "words": (pd.DataFrame(X).assign(kind="a"), TypeError, "column 'kind' of dtype .*; encode it"),
    "categories": (pd.DataFrame({"c": pd.Categorical(["a", "b"])}), TypeError, "column 'c'.*; encode it"),
    "rows of two lengths": ([X[0], X[1, :2]], ValueError, r"different shapes, \(2,\) and \(3,\)"),
    "numbers in a list": ([[1.0]], TypeError, "is a list; give .*numpy.asarray"),
    "arguments by name": ({"x": X}, TypeError, r"is a dict; .*tuple\(.*\.values\(\)\)"),
    "a data set of xarray": (xr.Dataset({"a": ("row", X[0])}), TypeError, "one of its variables"),
    "objects": (X.astype(object), TypeError, r"dtype object; give numbers, such as .*astype\(float\)"),
    "too large": (np.array([[2**63]], dtype="u8"), ValueError, "which no signed integer holds"),
}
STREAMS = {"a loader", "a data set"}


def pair(likelihood: str = "normal") -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = pyro_vae.models.VAE(nn.Linear(2, 3), 2, likelihood)
    return model, pyro_vae.guides.AmortizedNormal(model, nn.Linear(3, 4))


def fitted(data: Any, likelihood: str = "normal", **options: Any) -> NDArray[Any]:
    options = {"epochs": 1, "batch_size": 10, "progress": False, "engine": "eager"} | options
    return pyro_vae.fit(*pair(likelihood), data, **options).history["loss"].to_numpy()


@pytest.fixture(autouse=True)
def _as_users_run_it() -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def programs() -> tuple[Any, Any]:
    model, guide = pair()
    guide(torch.as_tensor(X))
    return model, guide


USES: dict[str, Callable[..., Any]] = {
    "diagnose": lambda m, g, x: pyro_vae.diagnose(m, g, x, draws=50)["log_evidence"],
    "log_weights": lambda m, g, x: pyro_vae.log_weights(m, g, x, draws=50).mean("draw"),
    "from_pyro_svi": lambda m, g, x: pyro_vae.from_pyro_svi(m, g, x, draws=50)["posterior"]["z"].mean("draw")[
        0
    ],
    "repair": lambda m, g, x: pyro_vae.repair(m, g, x, draws=50, steps=("resample",))["posterior"]["z"][0, 0],
    "active_units": lambda m, g, x: pyro_vae.active_units(m, g, x, draws=50)["kl"],
    "calibrate": lambda m, g, x: pyro_vae.calibrate(m, g, n=6, data=x)["pit"],
}


def test_tensors_of_inference_mode_are_copied() -> None:
    with torch.inference_mode():
        x = torch.as_tensor(X) * 1.0
    assert np.array_equal(fitted(x), fitted(X))


@pytest.mark.parametrize("about", TAKEN)
def test_fit_takes_it(about: str) -> None:
    losses = fitted(TAKEN[about])
    if about not in STREAMS:  # which come in an order of their own
        np.testing.assert_allclose(losses, fitted(torch.as_tensor(X)), rtol=1e-5)
    fitted(X, validation=TAKEN[about])


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    "about", ["big-endian", "a data frame", "a data array", "a list of rows", "a loader"]
)
def test_diagnostics_take_it(about: str, use: Callable[..., Any], programs: tuple[Any, Any]) -> None:
    expected, found = use(*programs, torch.as_tensor(X)), use(*programs, TAKEN[about])
    if about == "a loader" and use is USES["diagnose"]:  # has other noise in every batch
        assert found.sizes == expected.sizes
        return
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("about", [name for name in TAKEN if name not in STREAMS])
def test_a_guide_takes_it(about: str, programs: tuple[Any, Any]) -> None:
    guide = programs[1]
    expected = guide.posterior(torch.as_tensor(X)).mean
    torch.testing.assert_close(guide.posterior(TAKEN[about]).mean, expected)


def test_a_guide_keeps_the_gradient_of_what_it_is_given(programs: tuple[Any, Any]) -> None:
    """The pseudo-inputs of a VampPrior are learned through it."""
    x = torch.as_tensor(X).requires_grad_()
    for q in (programs[1].posterior(x), programs[1].get_posterior(x)):
        (gradient,) = torch.autograd.grad(q.mean.sum(), x)
        assert gradient.any()


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_integers_become_what_the_parameters_are(data: Any) -> None:
    np.testing.assert_allclose(fitted(data, "poisson"), fitted(COUNTS.astype("f4"), "poisson"), rtol=1e-6)
    model, guide = pair("poisson")
    guide(torch.as_tensor(COUNTS).float())
    assert np.isfinite(pyro_vae.diagnose(model, guide, data, draws=30)["elbo"]).all()
    assert guide.posterior(data).mean.dtype == torch.float32


def test_indices_stay_integers() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(3, 4), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.embedding(kind)

    def model(x: torch.Tensor, kind: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + kind[..., None], 1.0).to_event(1), obs=x)

    guide = pyro_vae.guides.AmortizedNormal(model, Encoder())
    kinds = pd.Series([0, 1, 2, 0, 1, 2])
    pyro_vae.fit(model, guide, (COUNTS, kinds), epochs=1, progress=False, engine="captured")
    assert guide.posterior(COUNTS, kinds).mean.shape == (6, 3)
    assert pyro_vae.diagnose(model, guide, (COUNTS, kinds), draws=30).sizes["observation"] == 6


@pytest.mark.parametrize(("data", "error", "sentence"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(data: Any, error: type[Exception], sentence: str, programs: tuple[Any, Any]) -> None:
    with pytest.raises(error, match=f"data.*{sentence}"):
        fitted(data)
    with pytest.raises(error, match=f"validation.*{sentence}"):
        fitted(X, validation=data)
    with pytest.raises(error, match=f"data.*{sentence}"):
        pyro_vae.diagnose(*programs, data, draws=30)
    with pytest.raises(error, match=sentence):
        plain_array(data)


def test_what_is_missing_is_told_with_its_place() -> None:
    frame = pd.DataFrame(X).astype("Float64")
    frame.iloc[2, 1] = pd.NA
    with pytest.raises(ValueError, match=r"data is nan at index \(2, 1\)"):
        fitted(frame)


def test_differences_that_float32_loses() -> None:
    stamps = np.column_stack([1.7e9 + np.arange(6), X[:, 1:]])
    with pytest.raises(ValueError, match=r"data holds values near 1.7e\+09 in column 0.*standardize"):
        fitted(stamps)
    model, guide = (program.double() for program in pair())
    pyro_vae.fit(model, guide, stamps, epochs=1, progress=False, engine="captured")


def test_a_loader_is_checked_batch_by_batch() -> None:
    x = torch.ones(6, 3)
    x[4, 1] = 0.5
    with pytest.raises(ValueError, match=r"a batch of data holds 0\.5"):
        fitted(DataLoader(TensorDataset(x), batch_size=2), "bernoulli")
