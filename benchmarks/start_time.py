"""How long until one can work? Import against ``import pyro``, and the time to the first step of a fit.

python benchmarks/start_time.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
FIRST_STEP = """
import sys; sys.path.insert(0, {folder!r})
import time, pyro_vae
from step_time import our_pair, torch_data
x, pair = torch_data(784), our_pair(784, 400, 20)
started = time.perf_counter()
pyro_vae.fit(*pair, x, steps=1, engine={engine!r}, progress=False)
print(time.perf_counter() - started)
"""


def seconds_to_run(code: str) -> float:
    """Of a new interpreter, to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def seconds_to_first_step(engine: str, cache: str) -> float:
    """In a new interpreter, after the imports; ``cache`` is where native builds are kept."""
    code = FIRST_STEP.format(folder=str(Path(__file__).parent), engine=engine)
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return float(answer.stdout)


def main() -> None:
    imports: dict[str, list[float]] = {name: [] for name in ("import pyro", "import pyro, pyro_vae")}
    names = ("eager", "captured", "native", "native, built before")
    steps: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for code, values in imports.items():
            values.append(seconds_to_run(code))
        with tempfile.TemporaryDirectory() as cache:
            for name, values in steps.items():
                values.append(seconds_to_first_step(name.split(",")[0], cache))
    print("seconds, medians of new interpreters")
    for name, values in {**imports, **{f"first step, {e}, 784-400-20": v for e, v in steps.items()}}.items():
        print(f"{name:44}{statistics.median(values):8.2f}")
    before, after = (statistics.median(values) for values in imports.values())
    print(f"import pyro_vae / import pyro               {after / before:8.2f}")


if __name__ == "__main__":
    main()
