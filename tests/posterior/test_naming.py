"""Every number that is returned says what it is called, and in which units it is."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

from pyro_vae.models import PPCA
from pyro_vae.posterior import (
    active_units,
    calibrate,
    compare,
    diagnose,
    from_pyro_svi,
    inference_gaps,
    log_weights,
    posterior_error,
    reference_posterior,
    repair,
)
from pyro_vae.posterior.pairing import paired_differences
from pyro_vae.posterior.truth.distance import local_coverage
from pyro_vae.svi import fit

pytestmark = pytest.mark.arviz

WITHOUT_UNITS = {"converged", "believable", "step", "active", "decided"}
"""Truth values and labels."""
VALUES = {"posterior", "prior", "posterior_predictive", "observed_data"}
"""Groups in the units of data and latents."""


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def moving_guide(x: Tensor) -> None:
    shift = pyro.param("shift", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + shift, 0.8))


def shared_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def shared_guide(_x: Tensor) -> None:
    pyro.sample("w", dist.Normal(0.5, 0.6))


X = [0.0, 1.0, 2.0]

RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "log_weights": lambda x: log_weights(model, guide, x, draws=40).to_dataset(),
    "log_weights of all": lambda x: log_weights(shared_model, shared_guide, x, draws=40).to_dataset(),
    "diagnose": lambda x: diagnose(model, guide, x, draws=40),
    "diagnose refined": lambda x: diagnose(model, guide, x, draws=40, refined=True),
    "diagnose of all": lambda x: diagnose(shared_model, shared_guide, x, draws=40),
    "inference_gaps": lambda x: inference_gaps(model, guide, x, draws=40, steps=20),
    "repair": lambda x: repair(model, guide, x, draws=40, steps=("resample",)),
    "calibrate": lambda x: calibrate(model, guide, 20, data=x, draws=20),
    "active_units": lambda x: active_units(model, guide, x, draws=20),
    "from_pyro_svi": lambda x: from_pyro_svi(
        model, guide, x, draws=40, calibration=calibrate(model, guide, 20, data=x, draws=20)
    ),
    "history": lambda x: fit(model, moving_guide, x, steps=1, progress=False, engine="eager").history,
    "paired_differences": lambda x: paired_differences(
        {"a": diagnose(model, guide, x, draws=40), "b": diagnose(model, guide, x, draws=40, seed=1)}
    ),
}


def unnamed(data: xr.Dataset, *, values: bool = False) -> list[str]:
    return [
        str(name)
        for name, array in data.data_vars.items()
        if not array.attrs.get("long_name")
        or not (values or name in WITHOUT_UNITS or array.attrs.get("units"))
        or (array.dtype.kind in "bUO" and "units" in array.attrs)
    ]


@pytest.mark.parametrize("name", RETURNED)
def test_every_variable_has_a_name_and_units(name: str) -> None:
    found = RETURNED[name](torch.tensor(X))
    groups = {"": found} if isinstance(found, xr.Dataset) else {k: g.to_dataset() for k, g in found.items()}
    for group, data in groups.items():
        assert data.data_vars, group
        assert unnamed(data, values=group in VALUES or "prior_sbc" in group) == [], group


def test_a_reference_and_what_is_measured_against_it() -> None:
    exact = PPCA(torch.tensor([[1.0], [1.0]]), torch.zeros(2), 1.0)
    reference = reference_posterior(exact, torch.ones(3, 2), draws=20)
    assert unnamed(reference["posterior"].to_dataset(), values=True) == []
    assert unnamed(posterior_error(reference, reference)) == []
    assert unnamed(local_coverage(reference, reference)) == []


def test_columns_of_the_comparison() -> None:
    x = torch.tensor(X)
    table = compare({name: diagnose(model, guide, x, draws=40, seed=seed) for seed, name in enumerate("ab")})
    assert set(table.attrs["long_name"]) == set(table.columns)
    assert set(table.columns) - set(table.attrs["units"]) == {"decided"}
