import torch

from pyro_vae.svi.engines.native import speedup
from tests.svi.engines.native.cases import Case, adam, native_steps, needs_compiler


@needs_compiler
def test_timing_moves_nothing() -> None:
    timed, other = Case().make(), Case().make()
    for made in (timed, other):
        steps = made.native(adam(made.parameters))
        native_steps(steps, made.data, made.index(4), torch.ones(4))
        if made is timed:
            stream = torch.random.get_rng_state()
            assert speedup(steps, made.capture(), (made.data,)) > 0
            assert torch.equal(torch.random.get_rng_state(), stream)
        native_steps(steps, made.data, made.index(4), torch.ones(4))
    assert all(torch.equal(p, q) for p, q in zip(timed.parameters, other.parameters, strict=True))
