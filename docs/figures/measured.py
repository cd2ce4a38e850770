"""Draws docs/images/coming_from.png and docs/images/beyond.png from the tables in benchmarks/results: a step
of Pyro's SVI and of ours, and what a fit of data in files needs.

python docs/figures/measured.py
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "docs" / "images"
plt.rcParams["font.size"] = 9
THEIRS, OURS = "#bbbbbb", "#0072b2"


def table(file: str, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading begins so."""
    lines = (ROOT / "benchmarks" / "results" / file).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def draw_steps(path: Path) -> None:
    """Milliseconds per step of every program, the slowest under Pyro at the top."""
    rows = sorted(table("programs.md", "program"), key=lambda row: float(row[2]))
    figure, axes = plt.subplots(figsize=(4.9, 5.6), layout="constrained")
    places = range(len(rows))
    axes.barh(places, [float(row[2]) for row in rows], color=THEIRS, height=0.8, label="pyro.infer.SVI")
    axes.barh(places, [float(row[3]) for row in rows], color=OURS, height=0.45, label="pyro_vae.SVI")
    axes.set_yticks(places, [row[0].replace("_", " ") for row in rows])
    axes.set(xlabel="CPU milliseconds of a step", ylim=(-0.6, len(rows) - 0.4))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("one import changed, on 21 programs", fontsize=10)
    figure.savefig(path, dpi=150)


def draw_memory(path: Path) -> None:
    """Memory and speed of a fit of 5,000,000 rows, by where they are."""
    rows = table("beyond.md", "5,000,000 rows")
    figure, (memory, speed) = plt.subplots(1, 2, figsize=(5.2, 2.4), sharey=True, layout="constrained")
    places = list(range(len(rows)))[::-1]
    for axes, column, unit in ((memory, 3, "MiB while fitted"), (speed, 2, "rows per second")):
        values = [float(row[column].replace(",", "")) for row in rows]
        axes.barh(places, values, color=OURS, height=0.6)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, f" {value:,.0f}", va="center")
        axes.set(xlabel=unit, xlim=(0, 1.5 * max(values)), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    memory.set_yticks(places, [row[0].replace(", DataLoader", ",\nDataLoader") for row in rows])
    figure.suptitle("a fit of 5,000,000 rows of 64 numbers (1.3 GB)", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    for name, draw in (("coming_from.png", draw_steps), ("beyond.png", draw_memory)):
        draw(folder / name)
        print(folder / name)


if __name__ == "__main__":
    main()
