"""How long until the first captured step of a long program? A deep Markov model, against Pyro's first step.

    python benchmarks/first_step.py               # 40 time steps
    python benchmarks/first_step.py 10 20 40

The program is that of ``tests/svi/pyro_svi/programs.py``: latent and observation of every time step are sites
of their own. CPU seconds of the process, each from a pair made anew: Pyro's first step, and all of ours until
one has come from the graph (Pyro's first two, tracing, writing the code, comparing it with Pyro).
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyro
import pyro.infer
import pyro.optim
import torch

import pyro_vae
from tests.svi.pyro_svi.programs import Transition

ROWS, FEATURES = 16, 3
MOST_STEPS = 5


def first_captured(kind: Any, times: int) -> tuple[float, float, str]:
    """CPU seconds of the first step, and until the first captured one (or ``MOST_STEPS``); the engine."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net = Transition()
    x, lengths = torch.randn(ROWS, times, FEATURES), torch.full((ROWS,), times)
    svi = kind(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    started, first = time.process_time(), 0.0
    for step in range(MOST_STEPS):
        svi.step(x, lengths, 0.5)
        first = first or time.process_time() - started
        if step > 0 and getattr(svi, "engine", "pyro") == "captured":
            break
    return first, time.process_time() - started, getattr(svi, "engine", "pyro")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("times", nargs="*", type=int, default=[40], help="numbers of time steps")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| time steps | Pyro's first step, CPU s | until the first captured step, CPU s | engine |")
    print("|---|---|---|---|")
    for times in parser.parse_args().times:
        by_pyro, _, _ = first_captured(pyro.infer.SVI, times)
        _, until, engine = first_captured(pyro_vae.SVI, times)
        print(f"| {times} | {by_pyro:.2f} | {until:.2f} | {engine} |", flush=True)


if __name__ == "__main__":
    main()
