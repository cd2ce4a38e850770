"""Arrays in files, data sets and loaders in the place of arrays: the same numbers."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.arrays import is_file_array
from pyro_vae.batches.files import read_rows
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import PPCA
from pyro_vae.posterior import calibrate, diagnose
from pyro_vae.svi import fit
from tests import seeds

pytestmark = pytest.mark.arviz

N = 50


def pair() -> tuple[PPCA, AmortizedNormal]:
    torch.manual_seed(0)
    model = PPCA(torch.randn(3, 2), torch.zeros(3), 0.5)
    return model, AmortizedNormal(model, torch.nn.Linear(3, 4))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, 3, generator=seeds.generator(1))


def in_file(kind: str, x: torch.Tensor, folder: Path) -> Any:
    if kind == "zarr":
        array = zarr.create_array(folder / "x.zarr", shape=x.shape, chunks=(7, 3), dtype="f8")
    else:
        array = h5py.File(folder / "x.h5", "w").create_dataset("x", x.shape, chunks=(7, 3), dtype="f8")
    array[:] = x.numpy()
    return array


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_an_array_in_a_file_is_that_array(kind: str, x: torch.Tensor, tmp_path: Path) -> None:
    stored = in_file(kind, x, tmp_path)
    assert is_file_array(stored)
    rows = np.array([30, 2, 2, 49])
    assert np.array_equal(read_rows(stored, rows), x.numpy()[rows])
    fits = [fit(*pair(), data, epochs=2, batch_size=16, progress=False) for data in (x, stored)]
    assert fits[0].history.identical(fits[1].history)
    reports = [diagnose(*pair(), data, draws=50, chunk=400) for data in (x, stored)]
    assert reports[0].identical(reports[1])
    calibrations = [calibrate(*pair(), n=70, data=data) for data in (x, stored)]
    assert calibrations[0].identical(calibrations[1])


@pytest.mark.parametrize(
    "options", [{"batch_size": 7}, {"batch_size": 20, "shuffle": True}, {"batch_size": 25, "num_workers": 1}]
)
def test_a_loader_is_diagnosed_in_the_order_of_its_data(x: torch.Tensor, options: dict[str, Any]) -> None:
    whole = diagnose(*pair(), x, draws=2000)
    report = diagnose(*pair(), DataLoader(TensorDataset(x), **options), draws=2000)
    assert report.sizes == whole.sizes
    assert report.attrs == whole.attrs
    assert report["observation"].equals(whole["observation"])
    assert np.corrcoef(report["elbo"], whole["elbo"])[0, 1] > 0.9  # other noise; in another order about 0


def test_the_batches_of_a_loader_have_noise_of_their_own() -> None:
    same = torch.zeros(4, 3)
    report = diagnose(*pair(), DataLoader(TensorDataset(same), batch_size=2), draws=100)
    assert len(np.unique(report["elbo"])) == 4


def test_a_loader_calibrates_by_its_first_rows(x: torch.Tensor) -> None:
    by_array = calibrate(*pair(), n=20, data=x)
    for data in (TensorDataset(x), DataLoader(TensorDataset(x), batch_size=8)):
        assert calibrate(*pair(), n=20, data=data).identical(by_array)
