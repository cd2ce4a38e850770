"""Does a sweep beat its fits one after another? Eight seeds of a 64-128-8 VAE, builds included.

python benchmarks/sweep_time.py
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from step_time import BATCH, STEPS, our_pair, torch_data

import pyro_vae

SEEDS = range(8)


def seconds(job: Callable[[], object]) -> float:
    """How long a job takes."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def make_pair() -> tuple[Any, Any]:
    """The pair of every seed."""
    return our_pair(64, 128, 8)


def one_by_one(data: torch.Tensor, epochs: int) -> None:
    """What sweep stands for."""
    for seed in SEEDS:
        torch.manual_seed(seed)
        pyro_vae.fit(*make_pair(), data, seed=seed, epochs=epochs, batch_size=BATCH, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    data = torch_data(64)
    together, apart = [], []
    for _ in range(options.rounds):
        together.append(
            seconds(
                lambda: pyro_vae.sweep(
                    make_pair, SEEDS, data, epochs=options.epochs, batch_size=BATCH, progress=False
                )
            )
        )
        apart.append(seconds(lambda: one_by_one(data, options.epochs)))
    ratio = statistics.median(b / a for a, b in zip(together, apart, strict=True))
    print(f"{len(SEEDS)} seeds, 64-128-8, {options.epochs * STEPS} steps each, torch {torch.__version__}")
    print(f"sweep             {statistics.median(together):7.2f} s")
    print(f"one after another {statistics.median(apart):7.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
