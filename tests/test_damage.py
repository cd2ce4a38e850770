"""Files are data: whatever is done to one, reading it gives what was written, or a sentence."""

import itertools
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_vae.run_folder import RunFolder, open_run
from pyro_vae.storage.netcdf import read_dataset, read_tree, write_netcdf
from pyro_vae.storage.records import write_record
from pyro_vae.study import Study, resume_study
from pyro_vae.study.config import read_config
from pyro_vae.svi import Checkpoint, Fit, fit
from pyro_vae.svi.state.saved import read
from tests.conftest import briefly
from tests.svi.pairs import PAIRS, observations

OWN_SEEDS = True


pytestmark = pytest.mark.usefixtures("_parsed_once")
NETCDF = ("diagnostics.nc", "calibration.nc", "units.nc", "latents.nc", "gaps.nc", "posterior/abs.nc")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def flipped(content: bytes, cases: int, chance: random.Random) -> Iterator[bytes]:
    """One byte changed, in each of so many regions that together are the whole file."""
    edges = np.linspace(0, len(content), min(cases, len(content)) + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        i = chance.randrange(low, high)
        yield content[:i] + bytes([content[i] ^ (1 << chance.randrange(8))]) + content[i + 1 :]


def mangled(content: bytes, cases: int, chance: random.Random) -> Iterator[bytes]:
    """Cut, lengthened, with a hole, or with two parts exchanged."""
    for _ in range(cases):
        low, high = sorted(chance.sample(range(len(content) + 1), 2))
        yield chance.choice(
            [
                content[:low],
                content[low:],
                content + content[low:high],
                content[:low] + content[high:],
                content[:low] + bytes(high - low) + content[high:],
                content[high:] + content[low:high] + content[:low],
            ]
        )


def foreign(marker: Path) -> Iterator[bytes]:
    """Files of other kinds, and some that are made to do harm."""
    yield b""
    yield b"\0" * 4096
    yield os.urandom(4096)
    yield pickle.dumps(Payload(marker))
    yield b"\x89HDF\r\n\x1a\n" + os.urandom(512)
    yield b"CDF\x01" + os.urandom(64)
    yield b"\x89PNG\r\n\x1a\n"
    yield b"[" * 200_000
    yield b'{"a":' * 100_000
    yield b'{"schema": ' + b"9" * 10_000 + b"}"
    yield b'{"schema": 1, "sha256": ' + b"[" * 500 + b"]" * 500 + b"}"
    yield b'{"schema": 1, "config": {"data": "\xff"}}'
    yield json.dumps({"schema": 1, "config": {}, "result": {}, "files": {}, "sha256": "0"}).encode()
    yield (2**63 - 1).to_bytes(8, "little") + b"{}"
    yield (2).to_bytes(8, "little") + b"{}"
    yield (4).to_bytes(8, "little") + b"[[]]"


def check(
    path: Path, read: Callable[[], Any], same: Callable[[Any], bool], flips: int, cuts: int, seed: int = 0
) -> int:
    """Damage a file in many ways; returns in how many."""
    whole, marker = path.read_bytes(), path.parent / "marker"
    chance, cases = random.Random(seed), 0
    for content in (*flipped(whole, flips, chance), *mangled(whole, cuts, chance), *foreign(marker)):
        path.write_bytes(content)
        cases += 1
        try:
            given = read()
        except (ValueError, FileNotFoundError) as error:
            assert str(error)  # noqa: PT017
            assert path.name in str(error)  # noqa: PT017
        else:
            assert same(given)
    assert not marker.exists()
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"no|not"):
        read()
    os.mkfifo(path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"no|not"):
        read()
    path.unlink()
    path.write_bytes(whole)
    assert same(read())
    return cases


@pytest.fixture
def run(small_study: Study, tmp_path: Path) -> Iterator[Path]:
    torch.set_default_dtype(torch.float32)
    with briefly():
        yield Path(shutil.copytree(small_study.folder, tmp_path / "run"))


class TestDamage:
    """Together more than 2,000 cases."""

    @pytest.mark.parametrize(
        ("name", "flips", "cuts"),
        [("params.safetensors", 300, 60), ("fit.json", 400, 60), ("history.nc", 200, 60)],
    )
    def test_a_fit(self, name: str, flips: int, cuts: int, tmp_path: Path) -> None:
        pair = PAIRS["normal"]()
        fit(pair.model, pair.guide, observations(32), epochs=2, progress=False).save(tmp_path)
        before = read(tmp_path)

        def same(saved: Any) -> bool:
            tensors = all(torch.equal(saved.tensors[key], value) for key, value in before.tensors.items())
            return tensors and saved.record == before.record and saved.history.identical(before.history)

        assert check(tmp_path / name, lambda: read(tmp_path), same, flips, cuts) > 200

    def test_a_record(self, run: Path) -> None:
        folder = RunFolder(run)
        before = folder.read_record()
        assert check(folder.record, folder.read_record, before.__eq__, 400, 60) > 400
        config = dict(before["config"])
        assert check(folder.record, lambda: read_config(folder.record), config.__eq__, 100, 30, seed=1) > 100

    @pytest.mark.parametrize("name", NETCDF)
    def test_netcdf(self, name: str, run: Path) -> None:
        sha256 = RunFolder(run).read_record()["files"][name]
        reader: Callable[[Path, str], Any] = read_tree if "/" in name else read_dataset
        before = reader(run / name, sha256)
        assert check(run / name, lambda: reader(run / name, sha256), before.identical, 40, 10) >= 60

    def test_a_checkpoint(self, tmp_path: Path) -> None:
        pair, path = PAIRS["normal"](), tmp_path / "state"

        def go_on() -> Fit:
            checkpoint = Checkpoint(path, seconds=100)
            return fit(
                pair.model, pair.guide, observations(32), epochs=1, progress=False, checkpoint=checkpoint
            )

        losses = go_on().history["loss"].values.tolist()
        whole = path.read_bytes()
        chance = random.Random(0)
        for content in (
            *flipped(whole, 200, chance),
            *mangled(whole, 50, chance),
            *foreign(tmp_path / "marker"),
        ):
            path.write_bytes(content)
            try:
                again = go_on()
            except ValueError as error:
                assert "the checkpoint" in str(error)  # noqa: PT017
                assert path.read_bytes() == content
            else:
                assert again.history["loss"].values.tolist() == losses
        assert not (tmp_path / "marker").exists()


def test_a_run_with_damaged_files_is_refused_and_made_whole(run: Path) -> None:
    """A damaged fit is fitted again, too."""

    def damage(name: str) -> bytes:
        content = (run / name).read_bytes()
        middle = len(content) // 2
        (run / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        return content

    for name in ("gaps.nc", "posterior/abs.nc"):
        whole = damage(name)
        with pytest.raises(ValueError, match=f"{name} cannot be read .its checksum is not the one"):
            Study.load(run)
        (run / name).write_bytes(whole)
    parameters = "fits/abs-0/params.safetensors"
    whole = [damage(name) for name in ("gaps.nc", "posterior/abs.nc", parameters)][-1]
    resume_study(run, progress=False)
    Study.load(run)
    assert (run / parameters).read_bytes() == whole


def forge(run: Path, diagnostics: xr.Dataset) -> None:
    """A run with checksums that are right, written by somebody else."""
    record = RunFolder(run).read_record()
    record["files"]["diagnostics.nc"] = write_netcdf(diagnostics, run / "diagnostics.nc")
    write_record(run / "run.json", {"schema": 1, **record})


@pytest.mark.parametrize("name", ["../../../outside", "/etc/passwd", "a/b", "a\\b"])
def test_no_path_of_a_run_leads_outside(name: str, tmp_path: Path) -> None:
    for path in (lambda run: run.fit(name, 0), lambda run: run.posterior(name)):
        with pytest.raises(ValueError, match="no name of a file"):
            path(RunFolder(tmp_path))


@pytest.mark.parametrize("name", ["../../../outside", "..", "", "x" * 300])
def test_names_in_a_run_cannot_reach_outside(name: str, run: Path) -> None:
    sha256 = RunFolder(run).read_record()["files"]["diagnostics.nc"]
    diagnostics = read_dataset(run / "diagnostics.nc", sha256)
    outside = run.parent / "outside-0"
    shutil.copytree(run / "fits" / "abs-0", outside)
    forge(run, diagnostics.assign_coords(guide=[name, "softplus"]))
    with pytest.raises(ValueError, match=r"no name of a file|not complete|cannot be read|holds no fit"):
        Study.load(run)


@pytest.mark.parametrize("name", ["fits/abs-0", "fits", "posterior", "diagnostics.nc", "run.json", "gaps.nc"])
def test_links_that_lead_outside_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leads out of the run's folder"):
        Study.load(run)


def test_a_link_to_a_run_is_a_run(small_study: Study, run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert Study.load(tmp_path / "link").answer == small_study.answer


def test_a_newer_run_is_refused_by_name(run: Path) -> None:
    record = RunFolder(run).read_record()
    write_record(run / "run.json", {**record, "schema": 2})
    for read_run in (Study.load, resume_study, lambda folder: open_run(folder).read_record()):
        with pytest.raises(ValueError, match=r"run.json has schema 2, and this version .* update pyro-vae"):
            read_run(run)


def test_nothing_is_pickled(run: Path) -> None:
    suffixes = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".nc", ".csv", ".html"}
