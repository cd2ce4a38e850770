"""Diagnostics of small networks take one thread: on a busy machine two wait for each other longer than they
work. Large ones take all that torch was given."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae
from pyro_vae import devices

DIAGNOSTICS: dict[str, Callable[[Any, Any, Tensor], object]] = {
    "diagnose": lambda model, guide, x: pyro_vae.diagnose(model, guide, x, draws=50),
    "diagnose, refined": lambda model, guide, x: pyro_vae.diagnose(model, guide, x, draws=50, refined=True),
    "log_weights": lambda model, guide, x: pyro_vae.log_weights(model, guide, x, draws=5),
    "refine": lambda model, guide, x: pyro_vae.refine(model, guide, x),
    "repair": lambda model, guide, x: pyro_vae.repair(model, guide, x, draws=50, warmup=5),
    "calibrate": lambda model, guide, x: pyro_vae.calibrate(model, guide, 20, data=x),
    "gaps": lambda model, guide, x: pyro_vae.inference_gaps(model, guide, x, draws=50, steps=8),
    "units": lambda model, guide, x: pyro_vae.active_units(model, guide, x, draws=5),
    "tree": lambda model, guide, x: pyro_vae.from_pyro_svi(model, guide, x, draws=5),
}


class Noting(nn.Module):
    """A pair whose model notes with how many threads it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(1, 3), nn.Linear(3, 1)

    def model(self, x: Tensor) -> None:
        SEEN.append(torch.get_num_threads())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


SEEN: list[int] = []
"""Outside of the pair, which the diagnostics copy."""


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    SEEN.clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_small_networks_take_one_thread_and_the_others_come_back(name: str) -> None:
    pair = Noting()
    DIAGNOSTICS[name](pair.model, pair.guide, torch.randn(4, 3))
    assert set(SEEN) == {1}
    assert torch.get_num_threads() == 2


def test_nuts_of_a_small_model_takes_one_thread() -> None:
    with pytest.raises(ValueError, match="NUTS has not converged"):
        pyro_vae.reference_posterior(Noting().model, torch.randn(2, 3), "nuts", draws=8, chains=2, warmup=4)
    assert set(SEEN) == {1}


@pytest.mark.parametrize("name", ["diagnose", "refine", "units", "tree"])
def test_large_networks_take_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "WORTH_A_SECOND_THREAD", 1.0)
    pair = Noting()
    DIAGNOSTICS[name](pair.model, pair.guide, torch.randn(4, 3))
    assert 2 in SEEN
