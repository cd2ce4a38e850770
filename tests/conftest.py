"""What every test starts from: float64, a fixed seed, validation on, an empty parameter store."""

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pytest
import torch

from tests.scheduling import pytest_configure, pytest_xdist_make_scheduler  # noqa: F401 - hooks
from tests.seeds import every_seed_shifted, no_seed_shifted

if TYPE_CHECKING:
    from pyro_vae.study import Study

SMALL: dict[str, Any] = {
    "scales": ("logvar", "softplus"),
    "seeds": 2,
    "epochs": 2,
    "hidden": (16,),
    "latent_dim": 2,
    "draws": 100,
    "gap_observations": 3,
    "device": "cpu",
}
"""The configuration of :func:`digits_study`."""


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> "Study":
    """A finished run of the main job, one for all under "digits" in ``scheduling.py``. Change copies."""
    from pyro_vae.study import StudyConfig, run_study

    torch.set_default_dtype(torch.float32)
    with no_seed_shifted(), coarse_figures():
        return run_study(StudyConfig(**SMALL), out=tmp_path_factory.mktemp("runs") / "digits", progress=False)


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> "Study":
    """A finished run on sixty rows of counts, its data beside its folder. Change copies."""
    from pyro_vae.study import StudyConfig, run_study

    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("small")
    np.save(folder / "counts.npy", np.random.default_rng(0).poisson(3.0, (60, 4)))
    options = SMALL | {"scales": ("abs", "softplus"), "seeds": 1, "hidden": (4,), "gap_observations": 2}
    config = StudyConfig(str(folder / "counts.npy"), batch_size=10, **options)
    with no_seed_shifted(), briefly():
        return run_study(config, out=folder / "run", progress=False)


_PARSED: dict[str, Any] = {}
"""By checksum, for :func:`_parsed_once`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``make test ORDER=n``: files, and the tests of a file, in an order of chance, so that none needs those
    before it."""
    if order := int(os.environ.get("ORDER") or 0):
        chance, places = random.Random(order), dict[object, float]()
        items.sort(key=lambda item: (places.setdefault(item.path, chance.random()), chance.random()))


def _leave_absent_devices_alone() -> None:
    """``torch.manual_seed`` keeps a call for each kind of device that this torch was not built for, and the
    stack that it came from: a millisecond in every test."""
    for kind, asked in ((torch.cuda, torch.cuda.random), (torch.xpu, torch.xpu.random), (torch.mtia,) * 2):
        if not kind._is_compiled():
            asked._lazy_call = lambda *_, **__: None  # type: ignore[attr-defined]


_leave_absent_devices_alone()


def pytest_collection_finish() -> None:
    """What is there by now stays, so the collector of garbage need not look at it again; and it comes less
    often, since most of what tests make ends without it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@contextmanager
def briefly() -> Iterator[None]:
    """Runs inside have few simulations for calibration, and a page without figures, which take longer than
    all the rest of a small run."""
    from pyro_vae.study import completion, measures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "SIMULATIONS", 40)
        patch.setattr(completion, "draw_figures", lambda _folder, _findings: [])
        yield


@contextmanager
def coarse_figures() -> Iterator[None]:
    """Figures that are drawn inside have a sixth of the points; most of their time goes into files."""
    from pyro_vae.report import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "DPI", 80)
        yield


@pytest.fixture
def _parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file of a run holds is worked out once for equal bytes; the bytes are read, their checksum is
    looked at and they are inspected each time. Half a second for every run that a test opens."""
    from pyro_vae.storage.inspection import require_harmless
    from pyro_vae.storage.records import checksum, read_bytes
    from pyro_vae.study import saved as of_studies
    from pyro_vae.svi.state import saved as of_fits

    def read(real: Any) -> Any:
        def once(path: Path, sha256: str) -> Any:
            require_harmless(read_bytes(path, sha256), path)
            if sha256 not in _PARSED:
                _PARSED[sha256] = real(path, sha256)
            return _PARSED[sha256].copy(deep=True)

        return once

    def dataset_from(content: bytes, path: Path) -> Any:
        require_harmless(content, path)
        sha256 = checksum(content)
        if sha256 not in _PARSED:
            _PARSED[sha256] = real_dataset_from(content, path)
        return _PARSED[sha256].copy(deep=True)

    real_dataset_from = of_fits.dataset_from
    monkeypatch.setattr(of_fits, "dataset_from", dataset_from)
    for name in ("read_dataset", "read_tree"):
        monkeypatch.setattr(of_studies, name, read(getattr(of_studies, name)))


@pytest.fixture(autouse=True, scope="module")
def _seeds_of_this_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Not in modules with ``OWN_SEEDS``: they compare with processes and threads whose seeds nobody shifts,
    with what a page shows, or call functions on given data."""
    with nullcontext() if getattr(request.module, "OWN_SEEDS", False) else every_seed_shifted():
        yield


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)
