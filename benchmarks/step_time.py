"""How long is a step? Ours, Pyro's SVI, hand-written torch, and NumPyro, on the same VAE.

    python benchmarks/step_time.py 64 64 8          # data, hidden and latent dimensions
    python benchmarks/step_time.py 784 400 20
    python benchmarks/step_time.py 784 400 20 --device cuda

A step is everything that a fit does: gather a batch of 128, loss, gradients, Adam. Every variant runs in a
process of its own, because compiling several models in one slows the later ones; rounds of an epoch alternate
between the processes and the medians are compared, because machines are shared. NumPyro and pythae are left
out where they are not installed (``pip install pyro-vae[benchmark]``; other interpreters by
``--numpyro-python`` and ``--pythae-python``). Where other programs run, set ``OMP_NUM_THREADS=1``: threads
that meet after every operation wait for the one that has no core, and a step takes ten times as long.

On a GPU, JAX multiplies single-precision matrices in TF32 (10 bits) unless it is told otherwise, and torch in
single precision (23 bits). ``--matmul`` gives both the same: ``highest`` is single precision, ``high`` TF32.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys

from steps_compared import BATCH, MATMUL, VARIANTS

REFERENCE = "hand-written, compiled"


def versions(numpyro_python: str, pythae_python: str = sys.executable) -> str:
    """Of the packages that are compared, where they are installed."""
    pythons = {"numpyro": numpyro_python, "jax": numpyro_python, "pythae": pythae_python}
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "pyro-ppl", *pythons):
        command = [pythons.get(package, sys.executable), "-c", code, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found += [f"{package} {done.stdout.strip()}"] if done.returncode == 0 else []
    return ", ".join(found)


def start(
    name: str, sizes: list[int], pythons: dict[str, str], device: str, matmul: str
) -> "subprocess.Popen[str]":
    """A worker that builds its step and waits."""
    python = pythons.get(name.split(",")[0], sys.executable)
    return subprocess.Popen(
        [python, __file__, *map(str, sizes), "--worker", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "STEP_TIME_DEVICE": device,
            "STEP_TIME_MATMUL": matmul,
            "JAX_PLATFORMS": device,
            "JAX_DEFAULT_MATMUL_PRECISION": {"high": "tensorfloat32", "highest": "float32"}[matmul],
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the others are on the same card
        },
    )


def is_ready(name: str, worker: "subprocess.Popen[str]") -> bool:
    """Wait until a worker has built and warmed its step; False where it cannot run here."""
    assert worker.stdout is not None
    assert worker.stderr is not None
    if worker.stdout.readline().strip() == "ready":
        return True
    print(f"{name} is left out: {worker.stderr.read().strip().splitlines()[-1:]}")
    return False


def one_round(worker: "subprocess.Popen[str]") -> float:
    """What a worker prints next, once it may go on."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sizes", type=int, nargs=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--matmul", choices=("highest", "high"), default=MATMUL)
    parser.add_argument("--numpyro-python", default=sys.executable)
    parser.add_argument("--pythae-python", default=sys.executable)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run, mode = VARIANTS[options.worker]
        if not options.worker.startswith("NumPyro"):
            import torch

            torch.set_float32_matmul_precision(MATMUL)
        run(mode, *options.sizes)
        return
    elsewhere = {
        "cpu": ("pyro-vae, CUDA graph", "hand-written, reduce-overhead"),
        "cuda": ("pyro-vae, native",),
    }[options.device]
    chosen = options.variants or [name for name in VARIANTS if name not in elsewhere]
    names = [REFERENCE, *(name for name in chosen if name != REFERENCE)]
    pythons = {"NumPyro": options.numpyro_python, "pythae": options.pythae_python}
    started = {name: start(name, options.sizes, pythons, options.device, options.matmul) for name in names}
    workers = {name: worker for name, worker in started.items() if is_ready(name, worker)}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            times[name].append(one_round(worker))
    for worker in workers.values():
        worker.kill()
    print(versions(options.numpyro_python, options.pythae_python))
    print(f"{'-'.join(map(str, options.sizes))}, batch {BATCH}, on {options.device}, matmul {options.matmul}")
    report(times)


def report(times: dict[str, list[float]]) -> None:
    print(f"{'':32}{'ms/step':>10}{'ratio':>8}{'fastest':>10}{'slowest':>10}")
    reference = statistics.median(times[REFERENCE])
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"{name:32}{middle:10.3f}{middle / reference:8.2f}{min(values):10.3f}{max(values):10.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
