"""Memory stays bounded: a million rows from a file, and ten thousand steps, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.arviz,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, as Linux has it"),
]

ROWS, COLUMNS = 1_000_000, 64

WATCH = '''
import json, sys, threading, time
import numpy as np, torch
import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder

torch.manual_seed(0)
model = VAE(MLPDecoder(8, (64,), 64), 8, "normal")
guide = AmortizedNormal(model, MLPEncoder(64, (64,)))


def anonymous():
    """Resident memory in MiB, without the pages of files, which the system takes back when it needs them."""
    text = open("/proc/self/status").read()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


class Peak:
    """The most while the block runs, seen every 10 ms."""

    def __enter__(self):
        self.before = self.most = anonymous()
        self.going = True
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while self.going:
            self.most = max(self.most, anonymous())
            time.sleep(0.01)

    def __exit__(self, *error):
        self.going = False
        self.thread.join()


def fit(x, **options):
    return pyro_vae.fit(model, guide, x, progress=False, device="cpu", **options)


warm = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)
fitted = fit(warm, steps=20, batch_size=512)
pyro_vae.diagnose(model, guide, warm, draws=30)
'''


def watched(code: str, *arguments: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["float32", "float64"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a million rows on disk: 244 MiB in float32, 488 MiB in float64."""
    path: Path = tmp_path_factory.mktemp("large") / "rows.npy"
    rows = np.lib.format.open_memmap(path, "w+", request.param, (ROWS, COLUMNS))
    generator = np.random.default_rng(0)
    for start in range(0, ROWS, 50_000):
        rows[start : start + 50_000] = generator.normal(size=(50_000, COLUMNS))
    rows.flush()
    return path


def test_a_million_rows_of_a_file_are_never_in_memory(large: Path) -> None:
    """Fitting takes the permutation of the rows (8 MiB) and batches; diagnosing what ``chunk`` rows need in
    the networks, and its results, seven numbers for each row (53 MiB) and a copy of them."""
    code = """
x = np.load(sys.argv[1], mmap_mode="r")
with Peak() as fitting:
    steps = fit(x, epochs=1, batch_size=1024).history.sizes["step"]
with Peak() as diagnosing:
    report = pyro_vae.diagnose(model, guide, x, draws=30)
print(json.dumps({
    "steps": steps, "rows": report.sizes["observation"],
    "fit": fitting.most - fitting.before, "diagnose": diagnosing.most - diagnosing.before,
}))
"""
    told = watched(code, large)
    assert (told["steps"], told["rows"]) == (977, ROWS)
    assert told["fit"] < 120
    assert told["diagnose"] < 300


def test_ten_thousand_steps_leak_nothing() -> None:
    code = """
seen = {}
def note(record):
    seen[record.step] = anonymous()
fit(warm, steps=12_000, batch_size=512, callbacks=[note])
print(json.dumps({"growth": seen[12_000] - seen[2_000], "seen": seen[2_000]}))
"""
    told = watched(code)
    assert told["growth"] < 8  # the history: 10,000 losses and the terms of an epoch
