"""How long does it take to repair the posteriors of 359 digits, and to say what their guide loses to whom?

    python benchmarks/repair_time.py                 # about a minute on one core, most of it the fit

The pair of ``pyro-vae compare digits`` is fitted once; then ``repair`` by its steps without chains and
``inference_gaps`` run on the held-out images, on one thread, the first time with nothing captured.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits

import pyro_vae
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, MLPEncoder, likelihoods

HELD_OUT = 359


def fitted(epochs: int) -> tuple[Any, Any, torch.Tensor]:
    """Model, guide and held-out images."""
    images = torch.as_tensor(load_digits().data, dtype=torch.float32)
    torch.manual_seed(0)
    model = VAE(MLPDecoder(8, [128, 128], 64), 8, likelihoods.get("binomial", total_count=16))
    guide = AmortizedNormal(model, MLPEncoder(64, [128, 128]))
    pyro_vae.fit(model, guide, images[:-HELD_OUT], epochs=epochs, progress=False)
    return model, guide, images[-HELD_OUT:]


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of the processor, and what it returned."""
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - processor, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, guide, x = fitted(options.epochs)
    calls: dict[str, Callable[[], Any]] = {
        "repair": lambda: pyro_vae.repair(model, guide, x, steps=("resample", "local")),
        "inference_gaps": lambda: pyro_vae.inference_gaps(model, guide, x),
    }
    results = {}
    for name, call in calls.items():
        runs = [timed(call) for _ in range(options.rounds)]
        walls, processors = ([run[i] for run in runs] for i in range(2))
        results[name] = runs[-1][2]
        print(
            f"{name:16} {HELD_OUT} digits: {statistics.median(walls):.2f} s, of the processor "
            f"{statistics.median(processors):.2f} s (first {walls[0]:.2f}, {processors[0]:.2f})"
        )
    report = results["repair"]["repair"].to_dataset()
    steps = report["step"].values.tolist()
    print(
        f"believable {float(report['believable'].mean()):.1%}, "
        + ", ".join(f"{step} {steps.count(step)}" for step in sorted(set(steps)))
        + f"; log evidence {float(report['log_evidence'].mean()):.3f} "
        + f"(guide's own {float(results['inference_gaps']['elbo'].mean()):.2f} ELBO)"
    )


if __name__ == "__main__":
    main()
