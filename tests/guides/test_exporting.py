"""What is exported gives what the guide gives: by torch.export of every family, by ONNX where it is here."""

import importlib.util
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.guides import (
    AmortizedFlow,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    PosteriorParameters,
)


def model(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])


def called(family: type, scale: str = "softplus"):  # type: ignore[no-untyped-def]
    encoder = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Tanh())
    guide = family(model, encoder, scale=scale)
    guide(torch.randn(4, 3))
    return guide


ROWS = ((({0: torch.export.Dim("rows", min=1)},)),)


@pytest.mark.parametrize("family", [AmortizedNormal, AmortizedMultivariateNormal, AmortizedFlow])
def test_an_exported_guide_has_the_same_posterior(family: type) -> None:
    guide = called(family)
    exported = torch.export.export(PosteriorParameters(guide), (torch.randn(5, 3),), dynamic_shapes=ROWS)
    for rows in (1, 7):
        x = torch.randn(rows, 3)
        here, there = guide.posterior(x), guide.posterior_from(exported.module()(x))
        z = torch.randn(rows, 2)
        torch.testing.assert_close(there.log_prob(z), here.log_prob(z))


@pytest.mark.parametrize("scale", ["logvar", "stdplus", "softclip", "clamp"])
def test_every_kind_of_scale_map_is_exported(scale: str) -> None:
    guide, x = called(AmortizedNormal, scale), torch.randn(6, 3)
    exported = torch.export.export(PosteriorParameters(guide), (x,), dynamic_shapes=ROWS)
    torch.testing.assert_close(exported.module()(x)["log_scale"].exp(), guide.posterior(x).stddev)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="ONNX is not installed",
)
@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_same_numbers(tmp_path: Path) -> None:
    import onnxruntime

    torch.set_default_dtype(torch.float32)
    guide, x = called(AmortizedNormal), torch.randn(6, 3)
    path = tmp_path / "q.onnx"
    torch.onnx.export(PosteriorParameters(guide), (x[:2],), path, dynamic_shapes=ROWS, dynamo=True)
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    loc, log_scale = session.run(None, {given.name: x.numpy()})
    q = guide.posterior(x)
    torch.testing.assert_close(torch.from_numpy(loc), q.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.from_numpy(log_scale).exp(), q.stddev, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(TypeError, match="guide is a function; give an encoder guide"):
        PosteriorParameters(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guide was never called"):
        PosteriorParameters(AmortizedNormal(model, torch.nn.Linear(3, 8)))
