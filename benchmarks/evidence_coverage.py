"""How often the 95% intervals of `diagnose` hold the true evidence, for Gaussians too narrow and too wide.

    python benchmarks/evidence_coverage.py [--runs 400]

The posterior is a standard Normal in d dimensions, the guide has s times its standard deviations, S draws
are taken, and the evidence is known. Printed for each: how often the weights are believed, how often a
standard error is told (elsewhere it is infinite), and how many of the told intervals hold the truth; then
which of these shares are outside of 90–97% by more than two of their own standard errors, wherever there are
enough intervals to say so. At the end, what the share of observations that cannot be
believed says about the bias of the mean evidence: the reason for the share where `compare` names no winner.
"""

import argparse
from typing import Any

import numpy as np

from pyro_vae.posterior.belief import MATERIAL_SHARE, believed
from pyro_vae.posterior.importance import _summary

DIMENSIONS = (1, 4, 8, 16)
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.3, 1.6, 2.0, 3.0)
DRAWS = (100, 300, 1000, 3000, 10_000)
FEWEST, LOW, HIGH = 15, 0.9, 0.97


def study(dimension: int, width: float, draws: int, runs: int, seed: int = 0) -> dict[str, Any]:
    """Of many runs: shares passed, told, believed and covered, and the mean error of the evidence in nats."""
    rng = np.random.default_rng([seed, dimension, draws, int(100 * width)])
    squares = rng.chisquare(dimension, (runs, draws))
    weights = dimension * np.log(width) + (1 - width**2) / 2 * squares  # log p − log q; the evidence is 0
    found = _summary(weights, np.zeros_like(weights))
    told = np.isfinite(found["log_evidence_se"])
    error = found["log_evidence"]
    good = believed(found | {"draws": draws})
    covered = abs(error[told]) <= 1.96 * found["log_evidence_se"][told]
    return {
        "believed": float(good.mean()) if good is not None else np.nan,
        "told": float(told.mean()),
        "covered": float(covered.mean()) if told.any() else np.nan,
        "intervals": int(told.sum()),
        "bias": float(error.mean()),
    }


def _outside(covered: float, intervals: int) -> bool:
    """Whether a share is outside of the band by more than chance makes it."""
    below = LOW - covered > 2 * np.sqrt(LOW * (1 - LOW) / intervals)
    return bool(below or covered - HIGH > 2 * np.sqrt(HIGH * (1 - HIGH) / intervals))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("  d  width  draws  believed  told  covered    bias")
    rows = []
    for draws in DRAWS:
        for dimension in DIMENSIONS:
            for width in WIDTHS:
                found = study(dimension, width, draws, runs if draws <= 1000 else runs // 2)
                rows.append((dimension, width, draws, found))
                print(
                    f"{dimension:3d}{width:7.2f}{draws:7d}{found['believed']:10.0%}{found['told']:6.0%}"
                    f"{found['covered']:9.2f}{found['bias']:+8.3f}"
                )
    told = [row for row in rows if row[3]["intervals"] >= FEWEST]
    print(f"told {FEWEST} times or more: {len(told)} of {len(rows)} cases")
    outside = [row for row in told if _outside(row[3]["covered"], row[3]["intervals"])]
    print(
        f"  coverage outside of {LOW:.0%} to {HIGH:.0%} by more than two of its errors: {len(outside)} cases"
    )
    for *case, found in outside:
        print(f"    d, width, draws = {case}: {found['covered']:.3f} of {found['intervals']}")
    all_told = sum(row[3]["intervals"] for row in told)
    total = sum(row[3]["covered"] * row[3]["intervals"] for row in told) / all_told
    print(f"  of all {all_told} intervals {total:.1%} hold the truth")
    for share in (0.02, MATERIAL_SHARE, 0.1, 0.2, 0.5):
        biases = [found["bias"] for *_, found in rows if 1 - found["believed"] <= share]
        print(f"  at most {share:.0%} not believed: mean evidence off by {min(biases):+.3f} nats at worst")


if __name__ == "__main__":
    main()
