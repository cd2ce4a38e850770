"""The memory of a draw's noise: by identity, weak, and void after any change in place."""

import copy
import gc
import pickle
import weakref

import torch
from torch import Tensor

from pyro_vae.guides.noise import NoiseMemory


def remembered() -> tuple[NoiseMemory, Tensor, Tensor, Tensor]:
    memory, loc, eps = NoiseMemory(), torch.zeros(3), torch.randn(3)
    draw = loc + eps
    memory.remember(draw, eps, (loc,))
    return memory, draw, eps, loc


def test_knows_its_draw_and_no_other_tensor() -> None:
    memory, draw, eps, loc = remembered()
    noise = memory.recall(draw, (loc,))
    assert noise is not None
    assert noise.eps is eps
    assert not noise.pathwise
    for other in (draw.clone(), draw.detach(), draw[:], draw.view(3), draw + 0, torch.zeros(3)):
        assert memory.recall(other, (loc,)) is None


def test_changes_in_place_are_noticed() -> None:
    memory, draw, _, loc = remembered()
    draw.mul_(2)
    assert memory.recall(draw, (loc,)) is None

    memory, draw, _, loc = remembered()
    draw[0] = 1.0
    assert memory.recall(draw, (loc,)) is None

    memory, draw, _, loc = remembered()
    loc.add_(1)  # as an optimizer does
    assert memory.recall(draw, (loc,)) is None


def test_other_parameters_are_noticed() -> None:
    memory, draw, _, loc = remembered()
    assert memory.recall(draw, (loc.detach(),)) is None
    assert memory.recall(draw, (loc.clone(),)) is None


def test_keeps_no_draw_alive() -> None:
    memory, draw, eps, loc = remembered()
    draw_alive, eps_alive = weakref.ref(draw), weakref.ref(eps)
    del draw, eps
    gc.collect()
    assert draw_alive() is None
    assert eps_alive() is None
    assert memory.recall(torch.zeros(3), (loc,)) is None


def test_remembers_several_draws() -> None:
    memory, loc = NoiseMemory(), torch.zeros(3)
    noises = [torch.randn(3) for _ in range(3)]
    draws = [loc + eps for eps in noises]
    for draw, eps in zip(draws, noises, strict=True):
        memory.remember(draw, eps, (loc,))
    for draw, eps in zip(draws, noises, strict=True):
        noise = memory.recall(draw, (loc,))
        assert noise is not None
        assert noise.eps is eps


def test_copies_are_empty() -> None:
    memory, draw, _, loc = remembered()
    for other in (copy.deepcopy(memory), copy.copy(memory), pickle.loads(pickle.dumps(memory))):
        assert other.recall(draw, (loc,)) is None
    assert memory.recall(draw, (loc,)) is not None


def test_nothing_is_remembered_in_inference_mode() -> None:
    with torch.inference_mode():
        memory, draw, _, loc = remembered()
        assert memory.recall(draw, (loc,)) is None


def test_inference_parameters_are_no_obstacle() -> None:
    with torch.inference_mode():
        loc = torch.zeros(3)
    memory, eps = NoiseMemory(), torch.randn(3)
    draw = loc + eps
    memory.remember(draw, eps, (loc,))
    noise = memory.recall(draw, (loc,))
    assert noise is None or noise.eps is eps
