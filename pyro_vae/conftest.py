"""Doctests start from seed 0 and an empty parameter store, in the default dtype that users have."""

from collections.abc import Iterator

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()
