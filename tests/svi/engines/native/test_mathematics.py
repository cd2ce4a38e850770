"""The elementary functions of the kernels, each against torch in double precision."""

import ctypes
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from pyro_vae.svi.engines.native.build import load
from tests.svi.engines.native.cases import needs_compiler

pytestmark = needs_compiler

FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "erf", "lgamma")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    header = files("pyro_vae.svi.engines.native").joinpath("mathematics.hpp").read_text()
    loops = "\n".join(
        f'extern "C" void {name}_all(const float* x, float* y, int64_t n) {{\n#pragma omp simd\n'
        f"for (int64_t i = 0; i < n; ++i) y[i] = math::{name}(x[i]); }}"
        for name in FUNCTIONS
    )
    return load(f"using T = float;\n{header}\n{loops}")  # type: ignore[no-any-return]


def computed(library: ctypes.CDLL, name: str, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    getattr(library, f"{name}_all")(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(len(x))
    )
    return y


def arguments(name: str) -> Tensor:
    spread = torch.cat(
        [10 ** torch.linspace(-44, 38, 2001), torch.linspace(0, 20, 4001), torch.linspace(0, 110, 997)]
    )
    both = torch.cat([spread, -spread])
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38])
    if name == "lgamma":  # right to single precision of its largest term, not of a result near zero
        both = torch.cat(
            [
                torch.linspace(0.01, 30, 3001),
                10 ** torch.linspace(-30, 30, 500),
                -torch.linspace(0.05, 9.3, 801),
            ]
        )
    return torch.cat([both, special]).float()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_close_to_the_exact_function_everywhere(library: ctypes.CDLL, name: str) -> None:
    x = arguments(name)
    given, wanted = computed(library, name, x).double(), getattr(torch, name)(x.double())
    rounded = wanted.float().double()
    assert torch.equal(given.isnan(), wanted.isnan()), x[given.isnan() != wanted.isnan()]
    assert torch.equal(given.isinf(), rounded.isinf()), x[given.isinf() != rounded.isinf()]
    finite = rounded.isfinite()
    error = (given - wanted).abs()[finite]
    scale = wanted.abs()[finite]
    scale = scale.clamp_min(20.0) if name == "lgamma" else scale
    ulps = error / (scale * 2.0**-23).clamp_min(2.0**-149)
    worst = int(ulps.argmax())
    assert float(ulps.max()) < 4, (float(ulps.max()), float(x[finite][worst]), float(given[finite][worst]))
