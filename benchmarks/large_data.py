"""Data that are not in memory: what a row costs from a file, and how much memory it takes.

    python benchmarks/large_data.py                  # 5 million rows of 64 columns, twice 1.3 GB on the disk
    python benchmarks/large_data.py --rows 500000

The same rows are fitted in memory, memory-mapped, by a ``DataLoader`` over the memory map, and from zarr,
each in a process of its own; then a part of them is diagnosed. A fit reads random rows, so each step
touches as many places of the file as it has observations; the check before the first step reads all of it,
so that it is in the page cache as far as that has room. Memory is that of the process without the pages of
files, which the system takes back when it needs them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLUMNS, BATCH, ROWS_PER_CHUNK = 64, 512, 4096
SLOWER = 25
"""So many fewer steps from zarr, where every random row costs a chunk."""
SOURCES = ("in memory", "memory-mapped", "memory-mapped, DataLoader, 1 worker", "zarr")


def write_rows(folder: Path, rows: int) -> None:
    """A .npy file and a zarr array of the same numbers, written piece by piece."""
    import numpy as np
    import zarr

    mapped = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, COLUMNS))
    stored = zarr.create_array(
        folder / "x.zarr", shape=mapped.shape, chunks=(ROWS_PER_CHUNK, COLUMNS), dtype="f4", compressors=None
    )
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(8, COLUMNS)).astype(np.float32)
    for start in range(0, rows, 100 * ROWS_PER_CHUNK):
        count = min(100 * ROWS_PER_CHUNK, rows - start)
        latent = generator.normal(size=(count, 8)).astype(np.float32)
        noise = generator.normal(size=(count, COLUMNS)).astype(np.float32)
        mapped[start : start + count] = latent @ weight + noise
        stored[start : start + count] = mapped[start : start + count]
    mapped.flush()


def open_rows(source: str, folder: Path) -> Any:
    import numpy as np
    import torch
    import zarr
    from torch.utils.data import DataLoader, Dataset

    mapped = np.load(folder / "x.npy", mmap_mode="r")

    class Rows(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(mapped)

        def __getitems__(self, rows: list[int]) -> torch.Tensor:
            return torch.from_numpy(mapped[rows])

    if source == "in memory":
        return np.array(mapped)
    if source == "zarr":
        return zarr.open_array(folder / "x.zarr", mode="r")
    if source == "memory-mapped":
        return mapped
    return DataLoader(Rows(), BATCH, shuffle=True, num_workers=1, collate_fn=lambda batch: batch)


def anonymous() -> float:
    """Resident memory in MiB without the pages of files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@contextmanager
def peak() -> Iterator[list[float]]:
    """The most memory while the block runs."""
    most, going = [anonymous()], [True]

    def look() -> None:
        while going[0]:
            most[0] = max(most[0], anonymous())
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        going[0] = False
        thread.join()


def measure(source: str, folder: Path, steps: int, diagnosed: int) -> dict[str, float]:
    import torch

    import pyro_vae
    from pyro_vae.guides import AmortizedNormal
    from pyro_vae.models import VAE, MLPDecoder, MLPEncoder

    torch.manual_seed(0)
    model = VAE(MLPDecoder(8, (128,), COLUMNS), 8, "normal")
    guide = AmortizedNormal(model, MLPEncoder(COLUMNS, (128,)))
    options = {"batch_size": BATCH, "progress": False, "device": "cpu", "engine": "captured"}
    pyro_vae.fit(model, guide, torch.randn(4 * BATCH, COLUMNS), steps=20, **options)
    before = anonymous()
    with peak() as most:
        data = open_rows(source, folder)
        opened = time.perf_counter()
        fitted = pyro_vae.fit(model, guide, data, steps=steps, **options)
        seconds = time.perf_counter() - opened
    result = {
        "seconds before the first step": seconds - steps / fitted.steps_per_second,
        "rows per second": fitted.steps_per_second * BATCH,
        "MiB while fitted": most[0] - before,
    }
    part = data if hasattr(data, "batch_sampler") else data[:diagnosed]
    if isinstance(part, torch.utils.data.DataLoader):
        part = torch.utils.data.DataLoader(
            torch.utils.data.Subset(part.dataset, range(diagnosed)), BATCH, collate_fn=part.collate_fn
        )
    started = time.perf_counter()
    pyro_vae.diagnose(model, guide, part, draws=100)
    result["rows diagnosed per second"] = diagnosed / (time.perf_counter() - started)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--diagnosed", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where x.npy and x.zarr are, or come to be")
    parser.add_argument("--source", choices=SOURCES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.source:
        print(json.dumps(measure(given.source, given.folder, given.steps, given.diagnosed)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "x.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(folder, given.rows)
        results: dict[str, list[dict[str, float]]] = {source: [] for source in SOURCES}
        for source in given.rounds * SOURCES:
            steps = given.steps // SLOWER if source == "zarr" else given.steps
            numbers = ["--steps", str(steps), "--diagnosed", str(given.diagnosed)]
            command = [sys.executable, __file__, "--source", source, "--folder", str(folder), *numbers]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[source].append(json.loads(done.stdout))
    columns = list(results["in memory"][0])
    print(f"| {given.rows:,} rows | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for source, rounds in results.items():
        # machines are shared: of several rounds the one that was disturbed least
        best = [(max if "per" in column else min)(result[column] for result in rounds) for column in columns]
        print(f"| {source} | " + " | ".join(f"{value:,.1f}" for value in best) + " |")


if __name__ == "__main__":
    main()
