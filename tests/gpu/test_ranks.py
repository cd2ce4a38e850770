"""Several processes on one machine, by NCCL: ``python -m pytest tests/gpu``. By gloo they are tested in
``tests/svi/parallel``."""

import numpy as np
import pytest
import torch

from tests.svi.parallel.test_ranks import plain, steady_fit
from tests.svi.ranks import run_ranks

CARDS = torch.cuda.device_count()

pytestmark = pytest.mark.skipif(not CARDS, reason="no CUDA device")


def _fit(engine: str) -> object:
    return plain(steady_fit("local", engine=engine, device="cuda", distributed=True))


@pytest.mark.parametrize("engine", ["eager", "captured", "cuda-graph"])
@pytest.mark.parametrize(
    "size", [1, pytest.param(2, marks=pytest.mark.skipif(CARDS < 2, reason="one CUDA device"))]
)
def test_ranks_by_nccl_take_the_steps_of_one_process(size: int, engine: str) -> None:
    """The noise of this pair belongs to the rows, so that one process without ranks has the same numbers; a
    recorded step reads its rate in single precision."""
    wanted = plain(steady_fit("local", engine="eager", device="cuda", distributed=False))
    for answer in run_ranks(size, _fit, engine):
        assert not isinstance(answer, str), answer
        for given, expected in zip(answer[0], wanted[0], strict=True):  # a parameter's numbers
            np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(answer[1], wanted[1], rtol=1e-6)
