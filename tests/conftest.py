"""What every test starts from: float64, a fixed seed, validation on, an empty parameter store."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import pytest
import torch

from tests.seeds import every_seed_shifted

if TYPE_CHECKING:
    from pyro_vae.study import Study

SMALL: dict[str, Any] = {
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
    """A finished run of the main job, one for all in ``TOGETHER`` under "digits". Change copies."""
    from pyro_vae.study import StudyConfig, run_study

    torch.set_default_dtype(torch.float32)
    with every_seed_shifted():
        return run_study(StudyConfig(**SMALL), out=tmp_path_factory.mktemp("runs") / "digits", progress=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``make test ORDER=n``: files, and the tests of a file, in an order of chance, so that none needs those
    before it."""
    if order := int(os.environ.get("ORDER") or 0):
        chance, places = random.Random(order), dict[object, float]()
        items.sort(key=lambda item: (places.setdefault(item.path, chance.random()), chance.random()))


TOGETHER = {
    "tests/report/test_page.py": "digits",
    "tests/test_study.py": "digits",
    "tests/svi/parallel/test_ranks.py": "ranks",
    "tests/test_damage.py": "damage",
    "tests/test_interruption.py": "interruption",
    "tests/test_planted.py": "planted",
    "tests/test_printed.py": "printed",
}
"""Files whose tests share what takes seconds to make, and so a worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests one by one, those of ``TOGETHER`` in one piece. ``--dist loadgroup`` would do it, but
    pytest-xdist 3.8 writes its groups into an attribute that pytest 9.2 does not read."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.split("::")[0], nodeid)

        def schedule(self) -> None:
            super().schedule()
            for node in self.nodes:  # one that takes the place of a crashed one begins when it has two
                self._reschedule(node)

    return ByFixture(config, log)


@contextmanager
def without_figures() -> Iterator[None]:
    """Runs inside have a page without figures, which take longer than all the rest of a small run."""
    from pyro_vae.study import completion

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "draw_figures", lambda _folder, _findings: [])
        yield


@pytest.fixture(autouse=True, scope="module")
def _seeds_of_this_run() -> Iterator[None]:
    with every_seed_shifted():
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
