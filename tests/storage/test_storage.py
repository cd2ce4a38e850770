"""What is written comes back, whole and equal in every bit; one writer at a time."""

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.lock import locked
from pyro_vae.storage.netcdf import read_tree, write_netcdf
from pyro_vae.storage.plain import pack, unpack
from pyro_vae.storage.records import read_record, write_record

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_tensors_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    (again,) = unpack(pack([tensor], "it"))
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_plain_values_come_back() -> None:
    value: dict[Any, Any] = {
        "none": None,
        1: (0.1, -0.0, 1e-320, math.inf),
        "nested": [{"tuple": (1, [2])}, {"dict": {}}, {"tensor": "0"}],
        "counter": Counter([5, 5, 2]),
        "text": "σ\n\0",
    }
    again = unpack(pack(value, "it"))
    assert again == value
    assert math.copysign(1.0, again[1][1]) == -1.0
    assert type(again["counter"]) is Counter
    assert math.isnan(unpack(pack(math.nan, "it")))


def test_a_view_and_a_transposed_tensor_come_back() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    first, row = unpack(pack([base.T, base[1]], "it"))
    assert torch.equal(first, base.T)
    assert torch.equal(row, base[1])


def test_a_record_knows_itself(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"schema": 1, "σ": [0.1, None]})
    assert read_record(path, 1) == {"σ": [0.1, None]}
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="is not what was written: its checksum"):
        read_record(path, 1)


def test_a_lock_leaves_nothing_and_can_be_had_again(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "a file"):
        for _ in range(2):
            with locked(target), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
                locked(target).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_killed_process_left_is_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1\n")
    with locked(tmp_path):
        pass


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_variable_with_the_name_of_a_group_is_read_too(tmp_path: Path) -> None:
    tree = xr.DataTree.from_dict({"loss": xr.Dataset({"loss": ("step", [2.0, 1.0])})})
    again = read_tree(tmp_path / "tree.nc", write_netcdf(tree, tmp_path / "tree.nc"))
    assert again.identical(tree)
