"""Does `diagnose` keep within its memory? The whole MNIST test set, a thousand draws for each image.

python benchmarks/diagnose_memory.py --root FOLDER-WITH-IDX-FILES
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from steps_compared import our_pair

import pyro_vae

GIB = 2**30


def held() -> int:
    """Memory that this process holds now, in bytes (Linux only)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most memory that this process has held so far, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", help="where MNIST lies; by default it is fetched from OpenML")
    parser.add_argument("--observations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--chunk", type=int, help="rows that go through at once; by default the library's")
    options = parser.parse_args()
    train = pyro_vae.data.load("mnist", root=options.root, part="train").x
    x = pyro_vae.data.load("mnist", root=options.root, part="test").x[: options.observations]
    torch.manual_seed(0)
    model, guide = our_pair(784, 400, 20)
    pyro_vae.fit(model, guide, train, epochs=options.epochs, progress=False)
    chunk = {} if options.chunk is None else {"chunk": options.chunk}
    pyro_vae.diagnose(model, guide, x[:2], draws=100)  # imports what it needs
    before, started = held(), time.perf_counter()
    report = pyro_vae.diagnose(model, guide, x, draws=options.draws, **chunk)
    seconds, above = time.perf_counter() - started, peak() - before
    bad = float((report["khat"] > report.attrs["khat_threshold"]).mean())
    print(f"{len(x)} images x {options.draws} draws, 784-400-20, {torch.get_num_threads()} threads")
    print(f"wall time {seconds:.0f} s, {len(x) * options.draws / seconds:,.0f} draws per second")
    # the peak may be that of the fit, so this is at most what diagnosing took
    print(
        f"memory {before / GIB:.2f} GiB before, data included; at most {above / GIB:.2f} GiB more at its peak"
    )
    print(
        f"log evidence {float(report['log_evidence'].mean()):.2f}, ELBO {float(report['elbo'].mean()):.2f} "
        f"nats per image; k-hat above the threshold for {bad:.0%}"
    )


if __name__ == "__main__":
    main()
