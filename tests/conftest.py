"""What every test starts from: float64, a fixed seed, validation on, an empty parameter store."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyro
import pytest
import torch

from tests.seeds import every_seed_shifted

if TYPE_CHECKING:
    from pyro_vae.study import Study

SMALL: dict[str, Any] = {
    "seeds": 2,
    "epochs": 2,
    "hidden": (16,),
    "latent_dim": 2,
    "draws": 100,
    "gap_observations": 3,
    "device": "cpu",
}
"""The configuration of :func:`digits_study`."""


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> "Study":
    """A finished run of the main job, one for all marked ``xdist_group("digits")``. Change copies."""
    from pyro_vae.study import StudyConfig, run_study

    torch.set_default_dtype(torch.float32)
    with every_seed_shifted():
        return run_study(StudyConfig(**SMALL), out=tmp_path_factory.mktemp("runs") / "digits", progress=False)


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
