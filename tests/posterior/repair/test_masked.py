"""What has no posterior to move is refused in a sentence, before anything is climbed."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_vae.posterior import diagnose, inference_gaps, repair

X = [1.0, -1.0, 2.0, 0.5]


def by_handler(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_distribution(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(x > 0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@config_enumerate
def enumerated(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def masked_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


MASKED = r"latent 'z' is masked, so that it has no posterior where it is hidden; leave those observations out"
SUMMED = r"latent 'k' is discrete and summed over.*marginalize it in the model, fix it by .*or ask diagnose"


@pytest.mark.parametrize("ask", [repair, inference_gaps])
@pytest.mark.parametrize(
    ("model", "its_guide", "sentence"),
    [
        (by_handler, masked_guide, MASKED),
        (by_distribution, masked_guide, MASKED),
        (enumerated, guide, SUMMED),
    ],
    ids=["handler", "distribution", "enumerated"],
)
def test_masked_and_enumerated_latents_are_refused(
    ask: Callable[..., Any], model: Any, its_guide: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        ask(model, its_guide, torch.tensor(X), draws=40)
    assert "\n" not in str(caught.value)
    assert bool(diagnose(model, its_guide, torch.tensor(X), draws=40)["elbo"].notnull().all())


def test_a_mask_that_hides_nothing_is_none() -> None:
    x = torch.tensor(X).abs()
    tree = repair(by_handler, masked_guide, x, draws=40, steps=("resample",))
    assert tree["posterior"]["z"].sizes["observation"] == 4
