"""How pytest-xdist hands out the tests; used by ``conftest.py``."""

from typing import Any

import pytest

TOGETHER = {
    "tests/report/test_page.py": "digits",
    "tests/test_study.py": "digits",
    "tests/pairs/test_isolation.py": "small",
    "tests/svi/parallel/test_ranks.py": "small",
    "tests/test_benchmarks.py": "small",
    "tests/test_cli.py": "small",
    "tests/test_damage.py": "small",
    "tests/test_dispatch.py": "small",
    "tests/test_interruption.py": "small",
    "tests/test_planted.py": "small",
    "tests/test_printed.py": "small",
    "tests/test_runs.py": "small",
}
"""Files whose tests share what takes seconds to make, a run or the process of ``processes.py``, and so a
worker."""


def pytest_configure(config: pytest.Config) -> None:
    """A worker that crashes ends the run. Its place would be taken by another one, which xdist gives the same
    test again, and work before it knows the tests."""
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests one by one, those of ``TOGETHER`` in one piece. ``--dist loadgroup`` would do it, but
    pytest-xdist 3.8 writes its groups into an attribute that pytest 9.2 does not read."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.split("::")[0], nodeid)

    return ByFixture(config, log)
