"""How often refinement asks the device for a number, which makes it wait."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.guides.refining import steps as steps_module
from pyro_vae.guides.refining.density import LocalDensity
from pyro_vae.guides.refining.steps import Normals, refined_normals

aten = torch.ops.aten


class Looks(TorchDispatchMode):
    """Counts operations that a CUDA device would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        asks = func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default)
        self.count += by_mask or asks or func is aten.masked_select.default
        return func(*args, **(kwargs or {}))


def counts(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson((2 * z).exp()).to_event(1), obs=x)


def refined(steps=12, spread=1.0):
    torch.manual_seed(0)
    x = torch.poisson(torch.randn(40, 3).mul(2).exp())
    density = LocalDensity(counts, {"z": 3}, (x,), {}, rows=40)
    loc = torch.randn(40, 3) * torch.linspace(0, spread, 40)[:, None]
    with Looks() as looks:
        found = refined_normals(density, Normals(loc, torch.ones(40, 3, 3).tril()), steps=steps, stop=0.01)
    return found, looks.count


@pytest.mark.parametrize("spread", [0.5, 30.0])
def test_looks_in_between_change_nothing_but_their_number(monkeypatch, spread):
    often, count = refined(spread=spread)
    monkeypatch.setattr(steps_module, "looks_of", lambda device: 4)
    rarely, fewer = refined(spread=spread)
    torch.testing.assert_close(rarely.normals, often.normals, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rarely.elbo, often.elbo, rtol=1e-6, atol=1e-6)
    assert torch.equal(rarely.converged, often.converged)
    assert count <= 12
    assert fewer <= 3
