import subprocess
import sys
from pathlib import Path

import pytest

from tests.scheduling import TOGETHER

ROOT = Path(__file__).parent.parent

CRASHING = """
import os
import pytest

@pytest.mark.parametrize("i", range(20))
def test(i):
    with open("ran", "a") as file:
        file.write(f"{i}\\n")
    if i == 3:
        os.kill(os.getpid(), 9)
"""


def test_the_files_are_there() -> None:
    assert all((ROOT / name).exists() for name in TOGETHER)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_a_worker_that_crashes_ends_the_run_and_fails_it(tmp_path: Path) -> None:
    (tmp_path / "test_crashing.py").write_text(CRASHING)
    (tmp_path / "scheduling.py").write_text((ROOT / "tests" / "scheduling.py").read_text())
    words = ["-p", "scheduling", "-p", "no:cacheprovider", "-q", "-n", "2", "--rootdir", "."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-c", "/dev/null", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "crashed while running 'test_crashing.py::test[3]'" in done.stdout
    assert (tmp_path / "ran").read_text().split().count("3") == 1
