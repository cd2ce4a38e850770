"""What every test starts from: float64, a fixed seed, validation on, an empty parameter store."""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
