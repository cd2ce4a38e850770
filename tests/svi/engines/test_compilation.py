"""The compiled engine: the same numbers, and captured where nothing can be compiled."""

import shutil

import pytest
import torch

from pyro_vae.svi import fit
from pyro_vae.svi.engines.compilation import InductorEngine
from pyro_vae.svi.objectives.elbo import ELBO
from tests.svi.engines.test_captured import ONE, assert_same, inside, make_engines
from tests.svi.pairs import PAIRS, observations

NOT_COMPILED = ("batch norm", "gamma", "score function", "AutoMultivariateNormal", "AutoLowRank")
"""They change tensors in place, or inductor draws or differentiates them otherwise; they run captured."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler of itself


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_compiled_equals_pyro_under_the_same_seed(name: str) -> None:
    """At the batch that it is compiled for, at another one, and with parameters that moved."""
    pair, x = PAIRS[name](), observations()
    with inside(pair):
        eager, _, parameters = make_engines(pair, x)
        leaves = list(parameters.values())
        compiled = InductorEngine(ELBO(), pair.model, pair.guide, leaves)
        for batch in (x, x[:5], x):
            torch.manual_seed(11)
            wanted = eager((batch,), ONE)
            torch.manual_seed(11)
            assert_same(compiled((batch,), ONE), wanted)
            with torch.no_grad():
                torch._foreach_add_(leaves, 0.01)
    assert compiled.name == ("captured" if name in NOT_COMPILED else "inductor")


@needs_compiler
@pytest.mark.slow
def test_a_fit_can_be_compiled() -> None:
    losses = []
    for engine in ("captured", "inductor"):
        torch.manual_seed(0)
        pair = PAIRS["normal"]()
        fitted = fit(
            pair.model, pair.guide, observations(40), engine=engine, batch_size=16, epochs=3, progress=False
        )
        assert fitted.engine == engine
        losses.append(fitted.history["loss"].values)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_without_a_compiler_the_graph_is_replayed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", no_compiler)
    pair = PAIRS["normal"]()
    fitted = fit(pair.model, pair.guide, observations(16), engine="inductor", epochs=2, progress=False)
    assert fitted.engine == "captured"
    assert "as it is (engine 'captured'): RuntimeError: no working C++ compiler found" in caplog.text


def test_buffers_are_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    pair = PAIRS["batch norm"]()
    fitted = fit(pair.model, pair.guide, observations(16), engine="inductor", epochs=2, progress=False)
    assert fitted.engine == "captured"
    assert "it changes tensors in place" in caplog.text
