"""Runs that somebody else made, to do harm: nothing outside is written or read, and each gets a sentence."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from pyro_vae.cli import app
from pyro_vae.report import pictures
from pyro_vae.report.findings import Findings
from pyro_vae.report.pictures import Picture
from pyro_vae.run_folder import RunFolder
from pyro_vae.storage import inspection
from pyro_vae.storage.atomic import write_whole
from pyro_vae.storage.lock import locked
from pyro_vae.storage.netcdf import netcdf_bytes, read_dataset, read_tree
from pyro_vae.storage.records import checksum, write_record
from pyro_vae.study import Study, completion, diagnose_again, phases
from tests.conftest import briefly

OWN_SEEDS = True


pytestmark = pytest.mark.usefixtures("_parsed_once")
PLANTED = (
    ".report.html.tmp",
    ".run.json.tmp",
    ".diagnostics.nc.tmp",
    ".compare.csv.tmp",
    "posterior/.abs.nc.tmp",
    "figures/training.png",
    "figures/.training.png.tmp",
)


@pytest.fixture
def run(small_study: Study, tmp_path: Path) -> Path:
    torch.set_default_dtype(torch.float32)
    return Path(shutil.copytree(small_study.folder, tmp_path / "run"))


@pytest.fixture
def _stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was made by this process."""
    monkeypatch.setattr(inspection, "_VERDICTS", {})


def two_figures(folder: Path, findings: Findings) -> list[Picture]:
    gallery = pictures._Gallery(folder, "abs, softplus", [])
    pictures._comparison(gallery, findings)
    return gallery.pictures


class TestLinks:
    def test_nothing_is_written_through_them(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a name is taken by a link, or by a second name of a file, what it leads to stays. The fits
        are diagnosed anew, and what is found in them is what was."""
        for i, name in enumerate(PLANTED):
            (mine := tmp_path / f"mine-{i}").write_text("my thesis")
            (run / name).unlink(missing_ok=True)
            (run / name).hardlink_to(mine) if name.startswith(".") and i % 2 else (run / name).symlink_to(
                mine
            )
        monkeypatch.setattr(completion, "draw_figures", two_figures)
        before = Study.load(run).diagnostics
        done = diagnose_again(Study.load(run), gap_observations=0, progress=False)
        assert {path.read_text() for path in tmp_path.glob("mine-*")} == {"my thesis"}
        assert not any(path.is_symlink() for path in run.rglob("*"))
        again = Study.load(run)
        xr.testing.assert_identical(again.diagnostics, done.diagnostics)
        np.testing.assert_allclose(again.diagnostics["log_evidence"], before["log_evidence"], rtol=1e-10)
        assert again.findings.gaps is None
        assert not (run / "gaps.nc").exists()

    def test_a_folder_in_the_way_is_told(self, tmp_path: Path) -> None:
        (tmp_path / ".file.tmp").mkdir()
        with pytest.raises(OSError, match="file"):
            write_whole(tmp_path / "file", b"new")

    def test_a_lock_with_a_second_name_keeps_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "mine").write_text("my thesis")
        (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "mine")
        with locked(tmp_path / "run"):
            pass
        assert (tmp_path / "mine").read_text() == "my thesis"


def external_link(file: h5py.File, secret: Path) -> None:
    file["b"] = h5py.ExternalLink(str(secret), "/a")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["b"] = h5py.SoftLink("/a")


def external_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("b", (3,), "f8", external=[(str(secret), 0, 24)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "a", (3,))
    file.create_virtual_dataset("b", layout)


def terabytes(file: h5py.File, secret: Path) -> None:
    file.create_dataset("b", (10**13,), "f8", chunks=(10**6,))


def packed(file: h5py.File, secret: Path) -> None:
    file.create_dataset("b", data=np.zeros(10**7), compression="gzip", compression_opts=9)


def circle(file: h5py.File, secret: Path) -> None:
    file.create_group("group")["again"] = file["/"]


def second_name(file: h5py.File, secret: Path) -> None:
    file["b"] = file["a"]


def committed_type(file: h5py.File, secret: Path) -> None:
    file["b"] = np.dtype("f8")


def compound(file: h5py.File, secret: Path) -> None:
    file["b"] = np.zeros(3, [("x", "f8"), ("y", "i4")])


def deep(file: h5py.File, secret: Path) -> None:
    file.create_group("/".join("g" * 200))


@pytest.mark.arviz
@pytest.mark.usefixtures("_stranger")
@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (external_link, "'b' is a link to somewhere else"),
        (soft_link, "'b' is a link to somewhere else"),
        (external_storage, "'b' lies in another file"),
        (virtual, "'b' lies in another file"),
        (terabytes, "'b' declares 80000000000000 bytes and holds 0"),
        (packed, "'b' is packed"),
        (circle, "has a second name"),
        (second_name, "has a second name"),
        (committed_type, "'b' is neither a group nor an array"),
        (compound, "'b' holds neither numbers nor text"),
        (deep, "nested too deeply"),
    ],
)
def test_netcdf_that_reaches_out_or_blows_up(
    forge: Callable[[h5py.File, Path], None], told: str, tmp_path: Path
) -> None:
    path, secret = tmp_path / "units.nc", tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["a"] = np.arange(3.0)
    path.write_bytes(netcdf_bytes(xr.Dataset({"a": ("x", [1.0, 2.0])})))
    with h5py.File(path, "a") as file:
        forge(file, secret)
    for reader in (read_dataset, read_tree):
        with pytest.raises(ValueError, match=f"units.nc cannot be read .*{told}.*damaged or foreign"):
            reader(path, checksum(path.read_bytes()))


@pytest.mark.arviz
@pytest.mark.usefixtures("_stranger")
@pytest.mark.parametrize(
    ("program", "told"),
    [("while True: pass", "does not come to an end"), ("os.kill(os.getpid(), 11)", "ended with SIGSEGV")],
)
def test_hdf5_that_hangs_or_crashes(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that reads first does; the file before it is sound, and so is the one behind it."""
    paths = [tmp_path / f"{i}.nc" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(netcdf_bytes(xr.Dataset({"a": ("x", [float(i)])})))
    monkeypatch.setattr(inspection, "_VERDICTS", {})
    monkeypatch.setattr(inspection, "PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(inspection, "SECONDS", 2.0)
    (tmp_path / "program.py").write_text(
        "import hashlib, json, os, sys\n"
        "for path in json.load(sys.stdin):\n"
        "    print(json.dumps(hashlib.sha256(open(path, 'rb').read()).hexdigest()), flush=True)\n"
        f"    if path.endswith('1.nc'):\n        {program}\n"
        "    print(json.dumps(''), flush=True)\n"
    )
    started = time.monotonic()
    inspection.inspect_files(paths)
    for i, path in enumerate(paths):
        read = lambda path=path: read_dataset(path, checksum(path.read_bytes()))  # noqa: E731
        if i == 1:
            with pytest.raises(ValueError, match=f"1.nc cannot be read .*{told}"):
                read()
        else:
            assert read()["a"].values.tolist() == [float(i)]
    assert time.monotonic() - started < 60


@pytest.mark.usefixtures("_stranger")
def test_a_run_of_somebody_else_is_read(run: Path) -> None:
    assert Study.load(run).config.seeds == 1
    assert set(inspection._VERDICTS.values()) == {""}


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = RunFolder(run).read_record()
    change(record)
    write_record(run / "run.json", {"schema": 1, **record})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["config"].update(seeds=10**9), "seeds is 1000000000; give at most 1,000"),
        (lambda r: r["config"].update(seeds=900), "has 1 of seed in|there is no"),
        (lambda r: r["config"].update(draws=10**9), "draws is 1000000000; give at most"),
        (lambda r: r["config"].update(lr=10**400), "lr is 1000"),
        (lambda r: r["config"].update(hidden=[10**9, 10**9]), "weights, .* with their gradients"),
        (lambda r: r["config"].update(latent_dim=3), "of latent in"),
        (lambda r: r["config"].update(scales=["abs"]), "is not of the guides abs|has 2 of guide"),
        *((lambda r, given=given: r["result"].update(image_shape=given), "image shape") for given in (
            "2x2", [2.0, 2.0], [[2], 2], [2, True], [4], {}, [-2, -2], 4, [10**30, 1], [2, "2"], "x" * 10**5,
        )),
        (lambda r: r["result"].update(image_shape=[3, 3]), "has 4 features, and the record's images have"),
        (lambda r: r["result"].update(failures=["abs"]), "failures that are no text"),
        (lambda r: r["result"].update(failures={"abs": 3}), "failures that are no text"),
        (lambda r: r.update(versions=[1]), "has no 'versions'"),
        (lambda r: r.update(device=3), "device that is no text"),
    ],
)  # fmt: skip
def test_records_with_absurd_values(change: Callable[[dict[str, Any]], None], told: str, run: Path) -> None:
    rewrite(run, change)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 500
    with pytest.raises(ValueError, match=told):
        Study.load(run)


def drop(name: str) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda data: data.drop_vars(name)


@pytest.mark.parametrize(
    ("measure", "change", "told"),
    [
        ("diagnostics", drop("khat"), "has no 'khat'"),
        ("diagnostics", lambda d: d.drop_attrs(), "has no number 'khat_threshold'"),
        ("diagnostics", lambda d: d.assign(khat=d["khat"].astype(str)), "no numbers in 'khat'"),
        ("diagnostics", lambda d: d.isel(observation=[]), "has 0 of observation"),
        ("diagnostics", lambda d: d.isel(observation=[0, 0]), "has other observations"),
        ("calibration", lambda d: d.rename(level="height"), "has no 'coverage' over"),
        ("units", lambda d: d.isel(latent=[0]), "has 1 of latent"),
        ("latents", lambda d: d.isel(guide=[1, 0]), "not of the guides abs, softplus"),
    ],
)
def test_measures_that_do_not_suit_the_record(
    measure: str, change: Callable[[xr.Dataset], xr.Dataset], told: str, run: Path
) -> None:
    path = run / f"{measure}.nc"
    content = netcdf_bytes(change(read_dataset(path, checksum(path.read_bytes()))))
    path.write_bytes(content)
    rewrite(run, lambda record: record["files"].update({path.name: checksum(content)}))
    with pytest.raises(ValueError, match=told):
        Study.load(run)


def test_a_diagnosis_that_is_interrupted_leaves_the_run_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(phases, "measure_fit", interrupt)
        done = CliRunner().invoke(app, ["diagnose", str(run), "--draws", "900000"])
    assert done.exit_code == 130
    assert f"interrupted; the run in {run} is as it was" in done.stderr
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with briefly():
        assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
        again = CliRunner().invoke(
            app, ["diagnose", str(run), "--draws", "120", "--gap-observations", "0", "--json"]
        )
    assert json.loads(again.stdout)["config"]["draws"] == 120


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--draws", "1000000000"], "draws is 1000000000; give at most 1,000,000: .* 1,000,000,000 times"),
        (["--seeds", "1000000000"], "seeds is 1000000000; give at most 1,000: .* 2,000,000,000 fits"),
        (["--hidden", "1000000", "--hidden", "1000000"], "weights, 32.0 TB with their gradients"),
        (["--latent-dim", "1000000000"], "latent_dim is 1000000000; give smaller ones: .* TB"),
        (["--hidden", "18000000"], "hidden is .*; give smaller ones: for 4 features .* 9.2 GB"),
    ],
)
def test_what_costs_too_much_is_told_before_anything_is_fitted(
    words: list[str], told: str, small_study: Study, tmp_path: Path
) -> None:
    data, out = small_study.config.data, tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", data, "-s", "abs", "-s", "clamp", *words, "--out", str(out)])
    assert done.exit_code == 2, done.output
    with pytest.raises(ValueError, match=told):
        raise ValueError(done.stderr)
    assert not out.exists()
