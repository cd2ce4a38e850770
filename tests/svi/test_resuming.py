"""Interrupted fits: they go on as if nothing had happened, or say why they cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.svi import Checkpoint, Fit, fit
from pyro_vae.svi.loop import Loop
from tests.svi.pairs import PAIRS, Pair, observations

EACH_STEP = 0.0


class InterruptedError_(Exception):
    """Stands for whatever ends a process."""


def options_of(path: Path | None, **options: Any) -> dict[str, Any]:
    checkpoint = None if path is None else Checkpoint(path, seconds=EACH_STEP)
    given = {"epochs": 4, "batch_size": 16, "lr": 0.02, "seed": 3, "progress": False, **options}
    return {**given, "checkpoint": checkpoint}


def fitted(make: Callable[[], Pair], data: Any, path: Path | None = None, **options: Any) -> Fit:
    pair = make()
    return fit(pair.model, pair.guide, data() if callable(data) else data, **options_of(path, **options))


def interrupted(
    make: Callable[[], Pair], data: Any, path: Path, after: int, patch: pytest.MonkeyPatch, **options: Any
) -> None:
    """A fit that ends in the middle of step ``after`` + 1."""
    whole, taken = Loop._take_step, 0

    def take_step(loop: Loop, batch: Any) -> None:
        nonlocal taken
        if taken == after:
            raise InterruptedError_
        taken += 1
        whole(loop, batch)

    with patch.context() as patched, pytest.raises(InterruptedError_):
        patched.setattr(Loop, "_take_step", take_step)
        fitted(make, data, path, **options)


def tensors(result: Fit) -> list[Tensor]:
    found: list[Tensor] = []
    for program in (result.model, result.guide):
        module = getattr(program, "__self__", program)
        if isinstance(module, nn.Module):
            found += [*module.parameters(), *module.buffers()]
        else:
            found += [p for _, p in sorted(program.state["params"].items())]  # type: ignore[attr-defined]
    return found


def assert_equal_bits(one: Fit, other: Fit) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(a, b)
    assert one.history.identical(other.history)
    assert one.engine == other.engine


def seeded(make: Callable[[], Pair], seed: int) -> Callable[[], Pair]:
    def made() -> Pair:
        torch.manual_seed(seed)
        return make()

    return made


def check_resumed(
    make: Callable[[], Pair],
    data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: tuple[int, ...] = (0, 1, 7),
    **options: Any,
) -> None:
    """The interrupted fit began with the weights of the whole one; the one that goes on has other weights."""
    whole = fitted(seeded(make, 0), data, **options)
    for steps in after:
        path = tmp_path / f"{steps}.state"
        interrupted(seeded(make, 0), data, path, steps, monkeypatch, **options)
        assert_equal_bits(fitted(seeded(make, 1), data, path, **options), whole)


@pytest.mark.parametrize("name", PAIRS)
def test_every_kind_of_pair_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resumed(PAIRS[name], observations(40), tmp_path, monkeypatch, after=(7,))


@pytest.mark.parametrize("engine", ["eager", "captured"])
def test_wherever_it_is_interrupted(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches an epoch: within an epoch, at its end, at once, at the last step."""
    check_resumed(PAIRS["dropout"], observations(40), tmp_path, monkeypatch, tuple(range(12)), engine=engine)
