"""Data of whole numbers and truth values, and what models of counts are made of, in native steps."""

from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.svi.engines.native.engine import NativeFunction
from pyro_vae.svi.engines.steps import CannotError
from tests.svi.engines.native.cases import needs_compiler

N = 48


class Counts(nn.Module):
    """Layer normalization, covariates by one-hot coding, masks, Poisson, negative binomial and Bernoulli."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 6))

    def forward(self, x: Tensor, kind: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", N, len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            coded = nn.functional.one_hot(kind, 3).to(z.dtype)
            rate, logits, raw = self.net(torch.cat([z, coded], -1)).chunk(3, -1)
            pyro.sample("a", dist.Poisson(rate.exp()).mask(seen).to_event(1), obs=x[:, :2])
            counted = dist.NegativeBinomial(torch.tensor(2.0), logits=logits)
            pyro.sample("b", counted.to_event(1), obs=x[:, 2:])
            pyro.sample("c", dist.Bernoulli(torch.sigmoid(raw)).to_event(1), obs=seen.to(z.dtype))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.linear(x.to(self.linear.weight.dtype).log1p()).tanh()


def histories(make: Any, data: Any) -> list[Tensor]:
    found = []
    for engine in ("captured", "native"):
        pyro.set_rng_seed(0)
        model, guide = make()
        fitted = pyro_vae.fit(model, guide, data, steps=6, batch_size=16, engine=engine, progress=False)
        assert fitted.engine == engine
        found.append(torch.tensor(fitted.history["loss"].values))
    return found


@needs_compiler
def test_counts_kinds_and_masks_are_native() -> None:
    torch.manual_seed(0)
    data = (
        torch.poisson(torch.full((N, 4), 2.0)).long(),
        torch.randint(3, (N,)),
        torch.rand(N, 2) > 0.3,
    )

    def make() -> Any:
        model = Counts()
        return model, AmortizedNormal(model, Encoder())

    torch.testing.assert_close(*histories(make, data), rtol=1e-5, atol=1e-5)


class Kinds(nn.Module):
    """Four kinds in each of two columns, observed as ``of`` says."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.linear = of, nn.Linear(2, 8)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", N, len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            scores = self.linear(z).unflatten(-1, (2, 4))
            if self.of == "one-hot":
                pyro.sample("x", dist.OneHotCategorical(logits=scores).to_event(1), obs=x)
            elif self.of == "logits":
                pyro.sample("x", dist.Categorical(logits=scores).to_event(1), obs=x)
            elif self.of == "probs":
                pyro.sample("x", dist.Categorical(probs=scores.softmax(-1)).to_event(1), obs=x)
            else:
                named = scores.log_softmax(-1).gather(-1, x[..., None])[..., 0]
                pyro.factor("x", named.sum(-1))


class EncoderOfKinds(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.linear.weight.dtype).flatten(1)).tanh()


@needs_compiler
@pytest.mark.parametrize("of", ["one-hot", "logits", "probs", "log_softmax"])
def test_observed_kinds_are_native(of: str) -> None:
    torch.manual_seed(0)
    kinds = torch.randint(4, (N, 2))
    data = nn.functional.one_hot(kinds, 4).to(torch.get_default_dtype()) if of == "one-hot" else kinds

    def make() -> Any:
        model = Kinds(of)
        return model, AmortizedNormal(model, EncoderOfKinds(8 if of == "one-hot" else 2))

    torch.testing.assert_close(*histories(make, data), rtol=1e-6, atol=1e-6)


def regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", N, len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


@needs_compiler
def test_a_regression_with_a_plate_that_counts_is_native() -> None:
    """``x @ w`` is a product with a vector, and the plate's permutation moves the stream alone."""
    data = torch.randn(N, 3), torch.randn(N)
    torch.testing.assert_close(*histories(lambda: (regression, AutoNormal(regression)), data))


def test_whole_numbers_that_are_no_floats_are_refused() -> None:
    steps: Any = SimpleNamespace(program=SimpleNamespace(dtype=torch.float32), _converted={})
    assert NativeFunction._as_numbers(steps, torch.tensor([2**24])).tolist() == [2.0**24]
    with pytest.raises(CannotError, match=r"int64 that are no numbers of torch\.float32"):
        NativeFunction._as_numbers(steps, torch.tensor([2**24 + 1]))
