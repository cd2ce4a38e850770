from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.svi.batches import Batches, as_batches

ROWS = torch.arange(10.0)[:, None]


def batches_of(data: Any, seed: int = 0) -> Batches:
    return as_batches(data, batch_size=4, seed=seed, device=torch.device("cpu"), dtype=torch.float32)


SOURCES = {
    "tensor": lambda: ROWS,
    "dataset": lambda: TensorDataset(ROWS),
    "shuffled loader": lambda: DataLoader(TensorDataset(ROWS), batch_size=4, shuffle=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_has_every_row_once_and_a_smaller_last_batch(source: str) -> None:
    batches = batches_of(SOURCES[source]())
    epoch = [batch[0] for batch in batches.epoch(0)]
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert len(batches) == 3
    assert batches.observations == 10
    assert torch.cat(epoch).sort(0).values.tolist() == ROWS.tolist()
    assert epoch[0].dtype == torch.float32


@pytest.mark.parametrize("source", SOURCES)
def test_the_order_follows_from_seed_and_epoch_alone(source: str) -> None:
    def order(seed: int, epoch: int) -> list[float]:
        return torch.cat([b[0] for b in batches_of(SOURCES[source](), seed).epoch(epoch)]).flatten().tolist()

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("source", SOURCES)
def test_the_order_does_not_draw_from_the_noise(source: str) -> None:
    before = torch.get_rng_state()
    batches = batches_of(SOURCES[source]())
    batches.first()
    list(batches.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_integers_stay_integers() -> None:
    x, y = next(batches_of((ROWS.double(), torch.arange(10))).epoch(0))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
