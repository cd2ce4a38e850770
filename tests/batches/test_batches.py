from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.batches import files as mapped_rows
from pyro_vae.batches.batches import ArrayBatches, Batches, as_batches

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


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "uint8", "float16"])
@pytest.mark.parametrize("mode", ["r", "c"])
def test_a_file_gives_the_batches_of_its_array(tmp_path: Path, dtype: str, mode: Any) -> None:
    values = np.arange(30).reshape(10, 3).astype(dtype)
    np.save(tmp_path / "rows.npy", values)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode=mode)
    from_file = batches_of((mapped, mapped[:, 0]))
    in_memory = batches_of((values.copy(), values[:, 0].copy()))
    assert isinstance(from_file, ArrayBatches)
    assert not any(isinstance(part, torch.Tensor) for part in from_file.rows)
    assert len(from_file) == len(in_memory)
    for ours, theirs in zip(from_file.epoch(3), in_memory.epoch(3), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(from_file.first(), in_memory.first(), strict=True))


def test_a_program_may_write_into_a_batch_from_a_file_that_it_must_not_write_to(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    batches = batches_of(mapped)
    batches.first()[0].zero_()
    next(batches.epoch(0))[0].zero_()
    assert mapped.sum() == ROWS.sum()


def test_a_bad_value_is_found_far_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_rows, "VALUES_AT_ONCE", 8)
    values = np.ones((50, 4))
    values[41, 2] = np.nan
    np.save(tmp_path / "rows.npy", values)
    for array in (values, np.load(tmp_path / "rows.npy", mmap_mode="r")):
        with pytest.raises(ValueError, match=r"data is nan at index \(41, 2\)"):
            batches_of(array)
