"""How long until one can work? The import against ``import pyro``, and the time to the first step of a fit.

    python benchmarks/start_time.py                 # about two minutes on 2 cores

Every measurement is a new interpreter. The first step is timed from the made data to its loss, on a VAE of
784-400-20: once with the packages imported, and once from the start of the process. Compilers begin with
empty caches, and again ("built before") with what that left.
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
from steps_compared import BATCH, hand_written_step, numpyro_svi, our_pair, pyro_step, torch_data

SIZES = (784, 400, 20)
REFERENCE_IMPORT, REFERENCE = "import pyro", "Pyro SVI, Trace_ELBO"
IMPORTS = ("import torch", REFERENCE_IMPORT, "import pyro_vae", "from pyro_vae import fit, guides, models")
AGAIN = ", built before"


def by_step(make_step: Callable[..., Callable[[Any], object]], mode: str) -> Callable[[], float]:
    """The first step of what takes a batch."""

    def first_step() -> float:
        import pyro  # noqa: F401

        import pyro_vae.guides
        import pyro_vae.models  # noqa: F401

        batch = torch_data(SIZES[0])[:BATCH]
        started = time.perf_counter()
        make_step(mode, *SIZES)(batch)
        return time.perf_counter() - started

    return first_step


def by_fit(engine: str) -> Callable[[], float]:
    """Ours."""

    def first_step() -> float:
        import pyro_vae.guides
        import pyro_vae.models
        import pyro_vae.svi

        x = torch_data(SIZES[0])
        started = time.perf_counter()
        pyro_vae.svi.fit(*our_pair(*SIZES), x, steps=1, engine=engine, progress=False)
        return time.perf_counter() - started

    return first_step


def by_numpyro() -> float:
    import jax

    started = time.perf_counter()
    svi, x = numpyro_svi(*SIZES)
    state = svi.init(jax.random.PRNGKey(0), x[:BATCH])
    state, loss = jax.jit(svi.update)(state, x[:BATCH])
    float(loss)
    return time.perf_counter() - started


VARIANTS: dict[str, Callable[[], float]] = {
    REFERENCE: by_step(pyro_step, "Trace_ELBO"),
    "hand-written, eager": by_step(hand_written_step, "eager"),
    "hand-written, compiled": by_step(hand_written_step, "compiled"),
    "hand-written, compiled" + AGAIN: by_step(hand_written_step, "compiled"),
    "pyro-vae, eager": by_fit("eager"),
    "pyro-vae, captured": by_fit("captured"),
    "pyro-vae, native": by_fit("native"),
    "pyro-vae, native" + AGAIN: by_fit("native"),
    "NumPyro, jit(update)": by_numpyro,
}


def run(*command: str, **environment: str) -> tuple[float, float] | None:
    """What a new interpreter says, and its own seconds from start to end; None if it fails."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment}  # as where it is installed
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - started
    print(".", end="", flush=True, file=sys.stderr)
    return (float(done.stdout), seconds) if done.returncode == 0 else None


def import_times(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the statement, with Pyro imported before where it is ours, and of the interpreter."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for i in range(rounds + 1):
        for name, values in times.items():
            before = "import pyro; " if "pyro_vae" in name else ""
            clock = f"import time; {before}t = time.perf_counter(); {name}; print(time.perf_counter() - t)"
            measured = run(sys.executable, "-c", clock)
            assert measured is not None, f"{name!r} fails"
            if i:  # the first has read the disk and left its bytecode
                values.append(measured)
    return times


def first_step_times(rounds: int, numpyro_python: str) -> dict[str, list[tuple[float, float]]]:
    """Seconds to the first step, and of the interpreter, of each variant that runs here."""
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in VARIANTS:
                python = numpyro_python if name.startswith("NumPyro") else sys.executable
                measured = run(
                    *(python, __file__, "--worker", name),
                    XDG_CACHE_HOME=cache,
                    TORCHINDUCTOR_CACHE_DIR=cache,
                )
                if measured is not None:
                    times.setdefault(name, []).append(measured)
    return times


def table(title: str, times: dict[str, list[tuple[float, float]]], reference: str, column: int) -> None:
    """Medians; the ratio is of the column of this number, to the reference's."""

    def medians(name: str) -> tuple[float, ...]:
        return tuple(statistics.median(values) for values in zip(*times[name], strict=True))

    print(f"{title:42}{'seconds':>10}{'process':>10}{'ratio':>8}")
    for name in times:
        alone, process = medians(name)
        ratio = medians(name)[column] / medians(reference)[column]
        print(f"{name:42}{alone:10.2f}{process:10.2f}{ratio:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--numpyro-python", default=sys.executable)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(VARIANTS[options.worker]())
        return
    imports = import_times(2 * options.rounds)
    steps = first_step_times(options.rounds, options.numpyro_python)
    print(f"\n{versions(options.numpyro_python)}; new interpreters, medians")
    table("import", imports, REFERENCE_IMPORT, 1)
    table("first step, {}-{}-{}".format(*SIZES), steps, REFERENCE, 0)


if __name__ == "__main__":
    main()
