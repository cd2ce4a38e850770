"""What is built from the repository works where the repository is not: wheel and source distribution."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pyro_vae

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.cfg").exists(), reason="installed without the repository")

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

SESSION = """
import sys, torch, pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder
assert pyro_vae.__file__.startswith(sys.argv[1]), pyro_vae.__file__
model = VAE(MLPDecoder(2, (8,), 5), 2, "normal")
guide = AmortizedNormal(model, MLPEncoder(5, (8,)))
print(pyro_vae.fit(model, guide, torch.randn(64, 5), epochs=2, engine="native", progress=False).engine)
"""


def build(kind: str, source: Path, out: Path) -> Path:
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def unzipped_checkout(folder: Path) -> Path:
    """The repository as an archive without links gives it: they are files that hold where they led."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        path, source = folder / name, ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            path.write_text(os.readlink(source))
        elif source.exists():
            shutil.copyfile(source, path)
    return folder


@pytest.mark.slow
@pytest.mark.arviz
def test_a_wheel_of_a_source_distribution_of_an_archive_works(tmp_path: Path) -> None:
    """Its own pages, headers and command, and nothing of the tests; compare, report and a native fit run."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    (tmp_path / "dist").mkdir()
    archive = build("sdist", unzipped_checkout(tmp_path / "checkout"), tmp_path / "dist")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        packed.extractall(tmp_path / "unpacked", filter="data")
    inside = {name.partition("/")[2] for name in names}
    assert not {name for name in inside if re.match(r"(tests|evidence|docs|guides|models)(/|$)", name)}
    assert {"LICENSE", "CHANGELOG.md", "pyro_vae/report/page.html", "pyro_vae/py.typed"} <= inside
    wheel = build("wheel", tmp_path / "unpacked" / archive.name.removesuffix(".tar.gz"), tmp_path / "dist")
    with zipfile.ZipFile(wheel) as packed_wheel:
        packed_wheel.extractall(tmp_path / "site")
    ours = {path.relative_to(ROOT) for path in (ROOT / "pyro_vae").rglob("*") if path.is_file()}
    ours = {path for path in ours if "__pycache__" not in path.parts}
    assert {path for path in ours if not (tmp_path / "site" / path).exists()} == set()
    top = {path.name for path in (tmp_path / "site").iterdir()}
    assert top == {"pyro_vae", f"pyro_vae-{pyro_vae.__version__}.dist-info"}

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = "--epochs 2 --seeds 1 -s abs -s logvar --latent-dim 2 --draws 100 --gap-observations 0"
    found = json.loads(run("-m", "pyro_vae", "compare", "digits", *small.split(), "--json"))
    assert set(found["summary"]) == {"abs", "logvar"}
    run("-m", "pyro_vae", "report", "runs/digits")
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 100_000
    assert run("-c", SESSION, str(tmp_path / "site")).strip() == "native"


def metadata() -> configparser.ConfigParser:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """What `make oldest` installs is what setup.cfg says."""
    settings = metadata()
    extras = "".join(settings["options.extras_require"][name] for name in ("parquet", "zarr", "dask"))
    oldest = dict(
        line.split("==")
        for line in (ROOT / "constraints-oldest.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for line in (settings["options"]["install_requires"] + extras).splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"python_version": "3.11"}):
            continue
        least = next(bound.version for bound in wanted.specifier if bound.operator == ">=")
        assert oldest[wanted.name].startswith(least), (wanted.name, least, oldest[wanted.name])
        assert wanted.specifier.contains(oldest[wanted.name])


def test_the_version_is_one() -> None:
    assert metadata()["metadata"]["version"] == "attr: pyro_vae.version.__version__"
    assert f"version: {pyro_vae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {pyro_vae.__version__}" in (ROOT / "CHANGELOG.md").read_text()
