"""How long until one can work? Import against ``import pyro``, and the time to the first step of a fit.

python benchmarks/start_time.py
"""

import statistics
import subprocess
import sys
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


def seconds_to_first_step(engine: str) -> float:
    """In a new interpreter, after the imports."""
    code = FIRST_STEP.format(folder=str(Path(__file__).parent), engine=engine)
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def main() -> None:
    imports = {name: [] for name in ("import pyro", "import pyro, pyro_vae")}
    steps = {engine: [] for engine in ("eager", "captured", "native")}
    for _ in range(ROUNDS):
        for code, values in imports.items():
            values.append(seconds_to_run(code))
        for engine, values in steps.items():
            values.append(seconds_to_first_step(engine))
    print("seconds, medians of new interpreters")
    for name, values in {**imports, **{f"first step, {e}, 784-400-20": v for e, v in steps.items()}}.items():
        print(f"{name:36}{statistics.median(values):8.2f}")
    before, after = (statistics.median(values) for values in imports.values())
    print(f"import pyro_vae / import pyro       {after / before:8.2f}")


if __name__ == "__main__":
    main()
