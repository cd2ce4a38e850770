"""Inside ``no_grad`` and ``inference_mode``, where users evaluate models: the same numbers as outside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae
from pyro_vae.guides import AmortizedNormal, Refined
from pyro_vae.models import VAE

Pair = tuple[VAE, AmortizedNormal]

ASKED: dict[str, Callable[[Pair, Tensor], Any]] = {
    "fit": lambda pair, x: pyro_vae.fit(*pair, x, epochs=2, progress=False).history["loss"].values,
    "diagnose": lambda pair, x: pyro_vae.diagnose(*pair, x, draws=100)["log_evidence"].values,
    "refined": lambda pair, x: pyro_vae.diagnose(*pair, x, draws=100, refined=True)["log_evidence"].values,
    "refine": lambda pair, x: pyro_vae.refine(*pair, x).loc,
    "a refined guide": lambda pair, x: Refined(pair[1]).posterior(x).mean,
    "gaps": lambda pair, x: pyro_vae.inference_gaps(*pair, x, draws=100)["amortization_gap"].values,
    "repair": lambda pair, x: pyro_vae.repair(*pair, x, draws=100)["posterior"]["z"].values,
}


def pair() -> tuple[Pair, Tensor]:
    torch.manual_seed(0)
    model = VAE(nn.Linear(2, 6), 2, "bernoulli")
    return (model, AmortizedNormal(model, nn.Linear(6, 5))), (torch.rand(8, 6) < 0.3).double()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("asked", ASKED)
def test_the_same_numbers_as_outside(asked: str, off: Callable[[], Any]) -> None:
    made, x = pair()
    wanted = torch.as_tensor(ASKED[asked](made, x))
    made, x = pair()
    with off():
        given = ASKED[asked](made, x[:])  # made here, a slice is a tensor of inference mode
    torch.testing.assert_close(torch.as_tensor(given), wanted, rtol=0, atol=0)
    assert torch.is_grad_enabled()
