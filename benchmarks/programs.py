"""Pyro's SVI, pyro_vae's SVI and fit on the programs that people have: do they agree, how long is a step?

    python benchmarks/programs.py                 # about two minutes on 2 cores
    python benchmarks/programs.py mixture         # by name

The programs are those of ``tests/svi/pyro_svi/programs.py``, with more rows in a batch. The two loops
alternate in rounds in one process, each in a parameter store of its own. Times are medians over all steps,
in CPU milliseconds of the thread: other work on the machine leaves them alone. Losses are apart by the
largest relative difference over the first steps from one seed: of the two loops, and of ``fit`` with the
program's own ELBO as its objective, captured and by Pyro's own steps.
"""

import argparse
import itertools
import statistics
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
from tests.svi.pyro_svi.programs import PROGRAMS, Program

ROUNDS, STEPS, WARM_UP = 7, 15, 12
MORE_ROWS = 16
AS_THEY_ARE = ("hidden_markov", "discrete_latent_by_its_score", "nested_plates_and_horseshoe")
"""The size of their batches is part of the program."""
FIT_STEPS = 90


def with_more_rows(value: Any) -> Any:
    """An argument for more observations."""
    if torch.is_tensor(value):
        return value.repeat_interleave(MORE_ROWS, 0)
    if isinstance(value, dict):
        return {key: with_more_rows(item) for key, item in value.items()}
    return tuple(map(with_more_rows, value)) if isinstance(value, tuple) else value


def made(name: str) -> Program:
    """The program, always from the same seed."""
    pyro.set_rng_seed(0)
    program = PROGRAMS[name]()
    if name in AS_THEY_ARE:
        return program
    return program._replace(calls=[with_more_rows(call) for call in program.calls])


class Contender:
    """One loop over a program, with a parameter store and a random stream of its own."""

    def __init__(self, kind: Any, name: str) -> None:
        self.state: Any = {"params": {}, "constraints": {}}
        program = made(name)
        self.calls = program.calls
        with pyro.get_param_store().scope(self.state):
            self.svi = kind(program.model, program.guide, pyro.optim.Adam({"lr": 1e-3}), program.loss)
        self.stream, self.taken = torch.get_rng_state(), 0

    def steps(self, count: int) -> tuple[list[float], list[float]]:
        """The losses of some steps, and the milliseconds of each."""
        with pyro.get_param_store().scope(self.state):
            torch.set_rng_state(self.stream)
            losses, times = [], []
            for _ in range(count):
                args, kwargs = self.calls[self.taken % len(self.calls)]
                started = time.thread_time()
                losses.append(self.svi.step(*args, **kwargs))
                times.append(1e3 * (time.thread_time() - started))
                self.taken += 1
            self.stream = torch.get_rng_state()
        return losses, times


def fitted(name: str, engine: str, steps: int) -> tuple[list[float], list[float]] | None:
    """The losses of a fit by the program's own ELBO, and when each of its epochs, of one step, has ended;
    None where its data are no tensors, or one of them is no part of a batch."""
    program = made(name)
    args, kwargs = program.calls[0]
    if kwargs or not all(map(torch.is_tensor, args)) or not isinstance(program.loss, pyro.infer.ELBO):
        return None
    ended: list[float] = []
    data: Any = args if len(args) > 1 else args[0]
    try:
        fit = pyro_vae.fit(
            program.model,
            program.guide,
            data,
            steps=steps,
            batch_size=len(args[0]),
            objective=program.loss,
            engine=engine,
            callbacks=[lambda _: ended.append(time.thread_time())],
            progress=False,
        )
    except ValueError:
        return None
    return fit.history["loss"].values.tolist(), ended


def fit_columns(name: str) -> tuple[str, str]:
    """How far the losses of a captured fit are from those of one by Pyro's own steps, and the milliseconds
    of a captured step, each an epoch with its bookkeeping."""
    captured, eager = fitted(name, "captured", FIT_STEPS), fitted(name, "eager", WARM_UP)
    if captured is None or eager is None:
        return "–", "–"
    (losses, ended), (expected, _) = captured, eager
    each = [after - before for before, after in itertools.pairwise(ended[FIT_STEPS // 3 :])]
    return f"{distance(expected, losses):.0e}", f"{1e3 * statistics.median(each):.2f}"


def distance(expected: list[float], found: list[float]) -> float:
    """The largest relative difference over the first steps."""
    return max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(expected, found, strict=False))


def row(name: str) -> str:
    """One line of the table."""
    theirs, ours = Contender(pyro.infer.SVI, name), Contender(pyro_vae.SVI, name)
    expected, found = theirs.steps(WARM_UP)[0], ours.steps(WARM_UP)[0]
    apart = distance(expected, found)
    rounds = [(theirs.steps(STEPS)[1], ours.steps(STEPS)[1]) for _ in range(ROUNDS)]
    by_pyro, by_svi = (statistics.median(itertools.chain(*times)) for times in zip(*rounds, strict=True))
    cells = [name, f"{apart:.0e}", f"{by_pyro:.2f}", f"{by_svi:.2f}", f"{by_svi / by_pyro:.2f}"]
    return f"| {' | '.join([*cells, *fit_columns(name), ours.svi.engine])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(PROGRAMS)}")
    names = parser.parse_args().names or list(PROGRAMS)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(
        "| program | losses apart | Pyro's SVI, ms | SVI, ms | ratio | fit: losses apart | fit, ms | "
        "engine of SVI |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
