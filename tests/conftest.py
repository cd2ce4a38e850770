"""What every test starts from: float64, a fixed seed, validation on, an empty parameter store."""

from collections.abc import Iterator

import pyro
import pytest
import torch

from tests.seeds import every_seed_shifted


@pytest.fixture(autouse=True, scope="module")
def _seeds_of_this_run() -> Iterator[None]:
    with every_seed_shifted():
        yield


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
