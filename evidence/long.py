"""The published runs at full length: MNIST, 784-200-200-50, dynamic binarization, 400,000 steps of batch 100.

    python -m evidence.long train --mnist FOLDER        # starts or resumes; `make evidence-long`
    python -m evidence.long train --mnist FOLDER --device cuda --runs VAE-logvar IWAE-logstd
    python -m evidence.long test --mnist FOLDER         # what is trained, into evidence/results/long.csv

Each run keeps its checkpoint and its fit in a folder of its own: it may be stopped at any time, and one that
was trained elsewhere is tested where its folder is brought.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae
from evidence.experiment import Row, float32
from evidence.experiments.published import BATCH, LR, make_pair
from pyro_vae.data import DynamicBinarization, binarize, load
from pyro_vae.svi import ELBO, IWAE, Fit

STEPS = 400_000
RUNS = {
    "VAE-logvar": (1, "logvar"),
    "VAE-logstd": (1, "logstd"),
    "VAE-softplus": (1, "softplus"),
    "IWAE-logstd": (5, "logstd"),
}
"""Draws per step, and the map."""

TESTED, DRAWS, REFINED_DRAWS = 1_000, 5_000, 1_000
OUT = Path("runs/evidence-long")
RESULTS = Path(__file__).parent / "results" / "long.csv"


def train(name: str, root: Path, out: Path, *, steps: int, device: str) -> None:
    """One run, from where it is to its end."""
    folder = out / name
    if (folder / "fit" / "fit.json").exists():
        print(f"{name} is trained: {folder}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    particles, scale = RUNS[name]
    with float32():
        images = load("mnist", root=root, part="train", likelihood="normal").x
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, guide = make_pair(scale, images)
        started = time.time()
        fitted = pyro_vae.fit(
            model,
            guide,
            DynamicBinarization(torch.from_numpy(images)),
            steps=steps,
            batch_size=BATCH,
            lr=LR,
            schedule=lambda optimizer: CosineAnnealingLR(optimizer, steps),
            objective=ELBO() if particles == 1 else IWAE(particles),
            device=device,
            checkpoint=folder / "state",
        )
    fitted.save(folder / "fit")
    about = {"steps": steps, "seconds": round(time.time() - started), "card": card(device)}
    (folder / "about.json").write_text(json.dumps(about))
    print(f"{name}: {fitted.engine} on {about['card']}, {fitted.steps_per_second:.0f} steps/s", flush=True)


def card(device: str) -> str:
    """What the run was on."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def test(name: str, root: Path, out: Path, *, tested: int, draws: int) -> Row:
    """Its −log p(x) by draws of the guide, as it is published, and by refined ones, which can be believed."""
    particles, scale = RUNS[name]
    folder = out / name
    with float32():
        images = load("mnist", root=root, part="train", likelihood="normal").x
        held_out = binarize(load("mnist", root=root, part="test", likelihood="normal").x)
        model, guide = make_pair(scale, images)
        guide(torch.from_numpy(held_out[:2]))  # its lazy parameters
        fitted = Fit.load(folder / "fit", model, guide)
        rows = np.random.default_rng(0).permutation(len(held_out))[:tested]
        everywhere = float(pyro_vae.diagnose(model, guide, held_out, draws=30)["elbo"].mean())
        by_guide = pyro_vae.diagnose(model, guide, held_out[rows], draws=draws)
        refined = pyro_vae.diagnose(model, guide, held_out[rows], draws=REFINED_DRAWS, refined=True)
    row: Row = {"run": name, "particles": particles, "map": scale, "images": tested, "draws": draws}
    row |= json.loads((folder / "about.json").read_text())
    row |= {
        "engine": fitted.engine,
        "steps_per_second": round(fitted.steps_per_second),
        "neg_elbo": -everywhere,
    }
    for suffix, found in (("", by_guide), ("_refined", refined)):
        # Images differ by tens of nats in log p(x) and by few in the gain over the ELBO.
        gain = found["log_evidence"].values - by_guide["elbo"].values
        row |= {f"nll{suffix}": -(everywhere + gain.mean())}
        row |= {f"nll_se{suffix}": gain.std(ddof=1) / np.sqrt(tested)}
        row |= {f"khat_bad{suffix}": float((found["khat"] > found.attrs["khat_threshold"]).mean())}
    return row


def keep(row: Row, results: Path) -> None:
    """Write a run's row in the place of its last one; the others stay."""
    rows = {} if not results.exists() else pd.read_csv(results).set_index("run").to_dict("index")
    rows[str(row["run"])] = {key: value for key, value in row.items() if key != "run"}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    results.parent.mkdir(exist_ok=True)
    table.loc[[name for name in RUNS if name in rows]].to_csv(results, float_format="%.6g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("train", "test"))
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST's IDX files")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.part == "train":
        for name in options.runs:
            train(name, options.mnist, options.out, steps=options.steps, device=options.device)
        return
    trained = [name for name in options.runs if (options.out / name / "about.json").exists()]
    for name in trained:
        keep(test(name, options.mnist, options.out, tested=TESTED, draws=DRAWS), RESULTS)
    print(pd.read_csv(RESULTS).T.to_string())


if __name__ == "__main__":
    main()
