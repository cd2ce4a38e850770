"""CUDA graphs against eager CUDA; run on a machine that has a GPU: ``python -m pytest tests/gpu``.

What the same steps do without one is in ``tests/svi/engines/test_recorded.py``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE
from pyro_vae.svi import ELBO, IWAE, STL, Fit, NonFiniteError
from tests.svi.engines.test_many_steps import fitted, halving, warming_up
from tests.svi.engines.test_recorded import EXACT_LR
from tests.svi.pairs import Pair, observations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def pair_with(*layers: Callable[[], nn.Module]) -> Callable[[], Pair]:
    """Layers are made with the pair: in the dtype of the tests, which is not that of the import."""

    def make() -> Pair:
        model = VAE(nn.Linear(2, 6), 2, "bernoulli")
        encoder = nn.Sequential(nn.Linear(6, 5), *(layer() for layer in layers))
        return Pair(model, AmortizedNormal(model, encoder))

    return make


def on_cuda(
    make: Callable[[], Pair], engine: str, data: Any = None, **options: Any
) -> tuple[Fit, list[Tensor]]:
    return fitted(make, engine, data, device="cuda", **{"lr": EXACT_LR, **options})


def assert_same_fits(make: Callable[[], Pair], data: Any = None, **options: Any) -> None:
    """Eager, captured and recorded CUDA: the same noise, so the same numbers up to the order of sums."""
    eager, wanted = on_cuda(make, "eager", data, **options)
    for engine in ("captured", "cuda-graph"):
        done, given = on_cuda(make, engine, data, **options)
        assert (done.engine, done.device) == (engine, eager.device)
        for name in eager.history:
            np.testing.assert_allclose(
                done.history[name], eager.history[name], rtol=1e-7, err_msg=f"{engine}: {name}"
            )
        for p, q in zip(given, wanted, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [(), (nn.Tanh,), (partial(nn.Dropout, 0.4),), (partial(nn.BatchNorm1d, 5), nn.ELU)],
    ids=["", "tanh", "dropout", "batch norm"],
)
def test_the_graph_takes_the_steps_of_eager_cuda(layers: tuple[Callable[[], nn.Module], ...]) -> None:
    """40 rows in batches of 16: two batch shapes, so two graphs."""
    assert_same_fits(pair_with(*layers))


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 0.5},
        {"schedule": halving},
        {"objective": ELBO(kl_weight=warming_up)},
        {"objective": ELBO(2, analytic_kl=False)},
        {"objective": IWAE(3)},
        {"objective": STL()},
        {"lr_multiplier": "matched"},
        {"validation": observations(12), "patience": 1, "epochs": 10, "lr": 0.25},
        {"optimizer": SGD},
        {"data": TensorDataset(observations(40))},
        {"batch_size": 1, "epochs": 6},
    ],
    ids=" ".join,
)
def test_whatever_fit_is_asked_for(options: dict[str, Any]) -> None:
    """Other optimizers and loaders too: there loss and gradients alone are recorded."""
    assert_same_fits(pair_with(), **options)


def test_auto_is_a_cuda_graph() -> None:
    assert fitted(pair_with(), "auto")[0].engine == "cuda-graph"


def test_single_precision() -> None:
    def make() -> Pair:
        pair = pair_with(nn.Tanh)()
        return Pair(pair.model.float(), pair.guide.float())

    graph, eager = (on_cuda(make, engine)[0] for engine in ("cuda-graph", "eager"))
    np.testing.assert_allclose(graph.history["loss"], eager.history["loss"], rtol=1e-4)


def test_a_fused_step_has_the_numbers_of_eager_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.svi.engines.choice.STEPS_WORTH_FUSING", 1)
    assert_same_fits(pair_with(nn.Tanh), max_norm=0.5)


def test_noise_is_fresh_at_every_replay() -> None:
    done, _ = on_cuda(pair_with(), "cuda-graph", observations(16), steps=6, epochs=None, lr=1e-30)
    assert len(set(done.history["loss"].values.tolist())) == 6


def test_a_fit_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    on_cuda(pair_with(), "cuda-graph", epochs=2, checkpoint=tmp_path / "state")
    _, again = on_cuda(pair_with(), "cuda-graph", epochs=4, checkpoint=tmp_path / "state")
    _, whole = on_cuda(pair_with(), "cuda-graph", epochs=4)
    for p, q in zip(again, whole, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_an_end_that_is_not_finite_has_the_words_of_eager_cuda() -> None:
    def make() -> Pair:
        pair = pair_with()()
        return Pair(pair.model.float(), pair.guide.float())  # 1e30 squared is finite in double precision

    messages = []
    for engine in ("cuda-graph", "eager"):
        with pytest.raises(NonFiniteError) as raised:
            on_cuda(make, engine, lr=1e30)
        messages.append(str(raised.value).split(":")[0])
    assert messages[0] == messages[1]


class Waits(nn.Module):
    """Asks the device how many numbers are positive, which a recording cannot."""

    def forward(self, h: Tensor) -> Tensor:
        return h + h[h > 0].sum() * 0.0


def test_what_waits_for_the_device_is_captured_and_leaves_the_generator_usable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done, _ = on_cuda(pair_with(Waits), "cuda-graph")
    assert done.engine in ("captured", "eager")
    assert "this fit" in caplog.text
    assert torch.isfinite(torch.randn(3, device="cuda")).all()
