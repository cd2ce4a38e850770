"""Does a sweep beat its fits one after another? Eight seeds of a 64-128-8 VAE, set-up included.

    python benchmarks/sweep_time.py                 # two minutes on 2 cores

Every variant starts in a process of its own, sweep with an empty cache of native builds (cold) and with the
one that this leaves; rounds alternate between the variants.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from step_time import versions
from steps_compared import BATCH, STEPS, our_pair, run_numpyro_seeds, torch_data

SEEDS = range(8)
SIZES = (64, 128, 8)


def make_pair() -> tuple[Any, Any]:
    """The pair of every seed."""
    return our_pair(*SIZES)


def together(epochs: int) -> None:
    """All seeds by sweep."""
    import pyro_vae

    pyro_vae.sweep(make_pair, SEEDS, torch_data(64), epochs=epochs, batch_size=BATCH, progress=False)


def one_by_one(engine: str) -> Callable[[int], None]:
    """What sweep stands for."""

    def fits(epochs: int) -> None:
        import pyro_vae

        options = {"epochs": epochs, "batch_size": BATCH, "engine": engine, "progress": False}
        for seed in SEEDS:
            pyro_vae.fit(*make_pair(), torch_data(64), seed=seed, **options)

    return fits


VARIANTS: dict[str, Callable[[int], None]] = {
    "sweep": together,
    "one after another, captured": one_by_one("captured"),
    "one after another, native": one_by_one("native"),
    "NumPyro, vmap of lax.scan": lambda epochs: run_numpyro_seeds(len(SEEDS), epochs, *SIZES),
}


COLD = ", cold cache"
ROWS = ["sweep" + COLD, *VARIANTS]
"""As they run: the cold sweep leaves its build to the others of the round."""


def seconds(name: str, epochs: int, cache: str, numpyro_python: str) -> float | None:
    """Of a new process, imports left out; None where the variant cannot run here."""
    python = numpyro_python if name.startswith("NumPyro") else sys.executable
    done = subprocess.run(
        [python, __file__, "--epochs", str(epochs), "--worker", name],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--numpyro-python", default=sys.executable)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.worker.startswith("NumPyro"):
            import numpyro  # noqa: F401
        else:
            import pyro_vae.svi  # noqa: F401
        started = time.perf_counter()
        VARIANTS[options.worker](options.epochs)
        print(time.perf_counter() - started)
        return
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for row in ROWS:
                measured = seconds(row.removesuffix(COLD), options.epochs, cache, options.numpyro_python)
                print(".", end="", flush=True, file=sys.stderr)
                if measured is not None:
                    times.setdefault(row, []).append(measured)
    print(f"\n{versions(options.numpyro_python)}")
    print(f"{len(SEEDS)} seeds, 64-128-8, {options.epochs * STEPS} steps each")
    print(f"{'':32}{'seconds':>10}{'ratio':>8}")
    reference = statistics.median(times["sweep"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:32}{middle:10.2f}{middle / reference:8.2f}")


if __name__ == "__main__":
    main()
