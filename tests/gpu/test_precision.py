"""Mixed precision and double precision on the card: ``python -m pytest tests/gpu``."""

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from tests.gpu.test_cuda_graph import on_cuda, pair_with
from tests.svi.pairs import Pair, observations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def single() -> Pair:
    pair = pair_with(nn.Tanh)()
    return Pair(pair.model.float(), pair.guide.float())


@pytest.mark.parametrize("engine", ["eager", "captured", "cuda-graph"])
def test_a_fit_under_autocast_learns_what_one_without_learns(engine: str) -> None:
    """bfloat16 rounds by 2⁻⁸; a stale cast of the weights would stop the learning altogether."""
    data = observations(40).float()
    exact, _ = on_cuda(single, engine, data, epochs=10)
    with torch.autocast("cuda", torch.bfloat16):
        rounded, _ = on_cuda(single, engine, data, epochs=10)
    np.testing.assert_allclose(rounded.history["loss"], exact.history["loss"], rtol=0.02)


def test_posteriors_under_autocast_are_in_single_precision() -> None:
    model, guide = single()[:2]
    x = observations(40).float().cuda()
    model.cuda(), guide.cuda()
    exact = guide.posterior(x)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = guide.posterior(x)
    assert rounded.mean.dtype == torch.float32
    torch.testing.assert_close(rounded.mean, exact.mean, rtol=0.05, atol=0.05)


def test_double_precision_has_the_numbers_of_the_cpu() -> None:
    """Refinement to its end: the card is asked less often whether to stop, so by default it goes further."""
    torch.manual_seed(0)
    model = VAE(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 6)), 2, "bernoulli")
    guide = AmortizedNormal(model, nn.Sequential(nn.Linear(6, 5), nn.Tanh()))
    x = observations(40)
    here = pyro_vae.refine(model, guide, x, steps=60, stop=1e-10)
    there = pyro_vae.refine(model.cuda(), guide.cuda(), x, steps=60, stop=1e-10)
    assert there.loc.dtype == torch.float64
    for name in ("loc", "scale_tril"):
        torch.testing.assert_close(getattr(there, name).cpu(), getattr(here, name), rtol=1e-4, atol=1e-4)


def test_a_fit_in_double_precision_has_the_losses_of_the_cpu() -> None:
    """Other noise on the card, so the same losses within their Monte Carlo error."""
    from tests.svi.engines.test_many_steps import fitted

    there, _ = on_cuda(pair_with(nn.Tanh), "auto", observations(400), epochs=30, lr=1e-2)
    here, _ = fitted(pair_with(nn.Tanh), "auto", observations(400), epochs=30, lr=1e-2)
    ends = [done.history["loss"].values[-100:] for done in (here, there)]
    error = np.sqrt(sum(end.var() / 10 for end in ends))  # losses of one epoch share their parameters
    assert abs(ends[0].mean() - ends[1].mean()) < 4 * error
