"""Wrong input to diagnostics, trees, references and comparisons."""

from collections.abc import Callable
from typing import Any

import arviz_base
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from pyro_vae import posterior
from pyro_vae.models import PPCA
from tests.bad_input import programs
from tests.bad_input.cases import Case, check, table
from tests.bad_input.programs import X

pytestmark = pytest.mark.arviz

F64 = torch.float64
DRAWING: dict[str, Callable[..., Any]] = {
    "log_weights": posterior.log_weights,
    "diagnose": posterior.diagnose,
    "from_pyro_svi": posterior.from_pyro_svi,
    "active_units": posterior.active_units,
    "inference_gaps": posterior.inference_gaps,
    "repair": posterior.repair,
}
LEAST = {"log_weights": 1, "from_pyro_svi": 1, "active_units": 2}


JOINT = ("log_weights", "diagnose", "from_pyro_svi")
"""They take latents that all observations share."""


def fixed_guide(x: torch.Tensor) -> None:
    """A guide without parameters: diagnostics need none."""
    programs.nothing_to_learn(x)


def ppca() -> PPCA:
    return PPCA(torch.ones(3, 1, dtype=F64), torch.zeros(3, dtype=F64), 1.0)


def ask(
    function: str, data: Any = X, model: Any = programs.model, guide: Any = fixed_guide, **options: Any
) -> Any:
    return DRAWING[function](model, guide, data, **{"draws": 100, **options})


EVERY = tuple(
    Case(f"{name}: {about}", lambda n=name, o=options: ask(n, **o), error, argument, remedy)
    for name in DRAWING
    for about, options, error, argument, remedy in (
        ("0 draws", {"draws": 0}, ValueError, "draws is 0", f"at least {LEAST.get(name, 30)}"),
        ("draws negative", {"draws": -5}, ValueError, "draws is -5", "integer"),
        ("draws 100.0", {"draws": 100.0}, ValueError, "draws is 100.0", "integer"),
        ("draws text", {"draws": "many"}, ValueError, "draws is 'many'", "integer"),
        ("draws bool", {"draws": True}, ValueError, "draws is True", "integer"),
        ("draws None", {"draws": None}, ValueError, "draws is None", "integer"),
        ("seed negative", {"seed": -1}, ValueError, "seed is -1", "at least 0"),
        ("seed text", {"seed": "0"}, ValueError, "seed is '0'", "integer"),
        ("chunk 0", {"chunk": 0}, ValueError, "chunk is 0", "at least 1"),
        ("chunk 0.5", {"chunk": 0.5}, ValueError, "chunk is 0.5", "integer"),
        ("data None", {"data": None}, TypeError, "data is None", "give a tensor"),
        ("data a list", {"data": [[0.0]]}, TypeError, "data is a list", "an array"),
        ("data text", {"data": "digits"}, TypeError, "data is a str", "give a tensor"),
        ("data of text", {"data": np.array(["a"])}, TypeError, "dtype <U1", "give numbers"),
        ("data empty", {"data": X[:0]}, ValueError, "data is empty", "at least one"),
        ("data NaN", {"data": X / 0}, ValueError, "data is nan at index (0, 0)", "impute"),
        ("data of one column", {"data": X[:, 0]}, ValueError, "data", "shape and dtype that both take"),
        ("two arguments", {"data": (X, X)}, ValueError, "2 arguments", "give the parts"),
        ("other lengths", {"data": (X, X[:2])}, ValueError, "[2, 6] observations", "equally many"),
        ("model text", {"model": "vae"}, TypeError, "model is a str", "PyroModule or a function"),
        ("guide a class", {"guide": PPCA}, TypeError, "guide is the class PPCA", "call it"),
        ("another site", {"guide": programs.renamed}, ValueError, "'z'", "add it to the guide"),
        ("no site", {"guide": programs.silent}, ValueError, "'z'", "add it to the guide"),
        ("another size", {"guide": programs.larger}, ValueError, "must match", "one shape in both"),
        (
            "outside",
            {"model": programs.outside, "guide": programs.outside_guide},
            ValueError,
            "'z'",
            "pyro.plate",
        ),
    )
    if not (about == "outside" and name in (*JOINT, "repair", "inference_gaps"))
)

SOME = (
    Case("29 draws", lambda: ask("diagnose", draws=29), ValueError, "draws is 29", "at least 30"),
    Case("one observation", lambda: ask("active_units", X[:1]), ValueError, "1 observations", "at least 2"),
    Case("gaps: no steps", lambda: ask("inference_gaps", steps=0), ValueError, "steps is 0", "at least"),
    Case(
        "gaps: steps text",
        lambda: ask("inference_gaps", steps="400"),
        ValueError,
        "steps is '400'",
        "integer",
    ),
    Case(
        "gaps: no particles",
        lambda: ask("inference_gaps", particles=0),
        ValueError,
        "particles is 0",
        "at least 1",
    ),
    Case("repair: unknown step", lambda: ask("repair", steps=["mcmc"]), ValueError, "'mcmc'", "'nuts'"),
    Case(
        "repair: steps a word", lambda: ask("repair", steps="nuts"), TypeError, "steps is 'nuts'", "('nuts',)"
    ),
    Case("repair: one chain", lambda: ask("repair", chains=1), ValueError, "chains is 1", "at least 2"),
    Case("repair: warmup -1", lambda: ask("repair", warmup=-1), ValueError, "warmup is -1", "at least 1"),
    Case("repair: row outside", lambda: ask("repair", observations=[99]), IndexError, "99", "0…5"),
    Case("tree: outside", lambda: ask("from_pyro_svi", observations=[-7]), IndexError, "-7", "0…5"),
    Case(
        "tree: no observations",
        lambda: ask("from_pyro_svi", observations=[]),
        ValueError,
        "observations",
        "leave it out",
    ),
    Case(
        "tree: a mask",
        lambda: ask("from_pyro_svi", observations=[True] * 6),
        TypeError,
        "bool",
        "row numbers",
    ),
    Case(
        "tree: halves", lambda: ask("from_pyro_svi", observations=[0.5]), TypeError, "float64", "row numbers"
    ),
    Case(
        "tree: text",
        lambda: ask("from_pyro_svi", observations="all"),
        TypeError,
        "observations",
        "row numbers",
    ),
    Case(
        "tree: history a list",
        lambda: ask("from_pyro_svi", history=[1.0]),
        TypeError,
        "history is a list",
        "fit.history",
    ),
    Case("tree: name a number", lambda: ask("from_pyro_svi", name=3), TypeError, "name is 3", "text"),
    Case("calibrate: no data", lambda: calibrate(data=None), ValueError, "no data", "give data="),
    Case(
        "calibrate: data first",
        lambda: posterior.calibrate(programs.model, fixed_guide, X),
        TypeError,
        "n is a Tensor",
        "data=",
    ),  # type: ignore[arg-type]
    Case("calibrate: n 1", lambda: calibrate(n=1), ValueError, "n is 1", "at least 2"),
    Case("calibrate: n 1.5", lambda: calibrate(n=1.5), TypeError, "n is a float", "number of simulations"),
    Case("calibrate: draws 0", lambda: calibrate(draws=0), ValueError, "draws is 0", "at least 1"),
    Case("calibrate: seed", lambda: calibrate(seed=-3), ValueError, "seed is -3", "at least 0"),
    Case("calibrate: chunk", lambda: calibrate(chunk=0), ValueError, "chunk is 0", "at least 1"),
    Case("calibrate: NaN", lambda: calibrate(data=X / 0), ValueError, "data is nan", "impute"),
    Case(
        "calibrate: guide",
        lambda: calibrate(guide=3),
        TypeError,
        "guide is an int",
        "PyroModule or a function",
    ),
    Case("reference: method", lambda: reference(method="hmc"), ValueError, "method is 'hmc'", "'nuts'"),
    Case(
        "reference: rows for method",
        lambda: reference(method=X),
        ValueError,
        "method is a Tensor of shape",
        "'nuts'",
    ),
    Case(
        "reference: four draws",
        lambda: reference(model=programs.model, method="nuts", draws=4, warmup=2),
        ValueError,
        "NUTS has not converged",
        "more draws",
    ),
    Case("reference: one chain", lambda: reference(chains=1), ValueError, "chains is 1", "at least 2"),
    Case("reference: draws", lambda: reference(draws=0), ValueError, "draws is 0", "at least"),
    Case("reference: warmup", lambda: reference(warmup="500"), ValueError, "warmup is '500'", "integer"),
    Case("reference: seed", lambda: reference(seed=-1), ValueError, "seed is -1", "at least 0"),
    Case(
        "reference: model",
        lambda: reference(model=3),
        TypeError,
        "model is an int",
        "PyroModule or a function",
    ),
    Case("reference: data", lambda: reference(data=None), TypeError, "data is None", "tensor"),
    Case("reference: observations", lambda: reference(observations=[6]), IndexError, "6", "0…5"),
    Case(
        "reference: not exact",
        lambda: reference(model=programs.model, method="exact"),
        ValueError,
        "posterior(x)",
        "method='nuts'",
    ),
)


def calibrate(**options: Any) -> Any:
    chosen = {"model": programs.model, "guide": fixed_guide, "data": X, "n": 10, **options}
    return posterior.calibrate(**chosen)


def reference(**options: Any) -> Any:
    return posterior.reference_posterior(**{"model": ppca(), "data": X, "draws": 10, **options})


def tree(observations: int = 3, group: str = "posterior", name: str = "z") -> Any:
    return arviz_base.from_dict(
        {group: {name: np.zeros((1, 10, observations)) + np.arange(10)[:, None]}},
        dims={name: ["observation"]},
    )


def evidence(*values: float) -> dict[str, list[float]]:
    return {"log_evidence": list(values)}


EMPTY = xr.Dataset()
COMPARISONS = (
    Case(
        "error: a Dataset",
        lambda: posterior.posterior_error(EMPTY, tree()),
        TypeError,
        "tree is a Dataset",
        "DataTree",
    ),  # type: ignore[arg-type]
    Case(
        "error: no draws",
        lambda: posterior.posterior_error(tree(), tree(group="prior")),
        ValueError,
        "reference",
        "'posterior'",
    ),
    Case(
        "error: None",
        lambda: posterior.posterior_error(tree(), None),
        TypeError,
        "reference is None",
        "DataTree",
    ),  # type: ignore[arg-type]
    Case(
        "error: nothing common",
        lambda: posterior.posterior_error(tree(name="z"), tree(name="w")),
        ValueError,
        "no observation and latent in common",
        "draw both",
    ),
    Case("align: nothing", lambda: posterior.align_draws({}), ValueError, "trees", "at least one"),
    Case("align: a tree", lambda: posterior.align_draws(tree()), TypeError, "trees", "name"),
    Case(
        "align: no group",
        lambda: posterior.align_draws({"a": tree()}, group="prior"),
        ValueError,
        "'prior'",
        "a tree with",
    ),
    Case(
        "align: a Dataset", lambda: posterior.align_draws({"a": EMPTY}), TypeError, "trees['a']", "DataTree"
    ),  # type: ignore[dict-item]
    Case(
        "align: seed",
        lambda: posterior.align_draws({"a": tree()}, seed=-1),
        ValueError,
        "seed is -1",
        "at least 0",
    ),
    Case(
        "compare: one",
        lambda: posterior.compare({"a": evidence(1, 2)}),
        ValueError,
        "diagnostics has 1",
        "at least two",
    ),
    Case(
        "compare: a list",
        lambda: posterior.compare([evidence(1, 2)]),
        TypeError,
        "diagnostics is a list",
        "by name",
    ),  # type: ignore[arg-type]
    Case(
        "compare: a Dataset",
        lambda: posterior.compare(EMPTY),
        TypeError,
        "diagnostics is a Dataset",
        "by name",
    ),  # type: ignore[arg-type]
    Case("compare: None", lambda: posterior.compare(None), TypeError, "diagnostics is None", "by name"),  # type: ignore[arg-type]
    Case("compare: arrays", lambda: compared(np.zeros(3)), TypeError, "'b'", "log_evidence"),
    Case("compare: a number", lambda: compared(3.0), TypeError, "'b' is a float", "log_evidence"),
    Case("compare: no seeds", lambda: compared([]), ValueError, "'b' is empty", "one for each seed"),
    Case(
        "compare: no evidence",
        lambda: compared({"elbo": [1, 2]}),
        ValueError,
        "no 'log_evidence'",
        "diagnose",
    ),
    Case(
        "compare: text",
        lambda: compared({"log_evidence": ["a", "b"]}),
        ValueError,
        "'log_evidence' of 'b'",
        "numbers",
    ),
    Case(
        "compare: NaN",
        lambda: compared(evidence(1, np.nan)),
        ValueError,
        "is nan for observation 1",
        "leave these out",
    ),
    Case(
        "compare: others",
        lambda: compared(evidence(1, 2, 3)),
        ValueError,
        "b: 1 × 3",
        "same seeds and observations",
    ),
    Case(
        "compare: one observation",
        lambda: posterior.compare({"a": evidence(1), "b": evidence(2)}),
        ValueError,
        "one observation",
        "at least two",
    ),
    Case(
        "pairs: one",
        lambda: posterior.paired_differences({"a": evidence(1, 2)}),
        ValueError,
        "has 1",
        "at least two",
    ),
    Case("answer: None", lambda: posterior.answer(None), TypeError, "comparison is None", "compare"),  # type: ignore[arg-type]
    Case(
        "answer: a table",
        lambda: posterior.answer(pd.DataFrame({"a": [1]})),
        ValueError,
        "'seeds'",
        "compare",
    ),
    Case("elpd: a dict", lambda: posterior.to_elpd({}), TypeError, "diagnostics is a dict", "diagnose"),  # type: ignore[arg-type]
    Case("elpd: nothing", lambda: posterior.to_elpd(EMPTY), ValueError, "'log_evidence'", "diagnose"),
    Case("evidence reading", lambda: posterior.evidence_reading(EMPTY), ValueError, "'khat'", "diagnose"),
    Case(
        "gaps reading",
        lambda: posterior.gaps_reading(EMPTY),
        ValueError,
        "'approximation_gap'",
        "inference_gaps",
    ),
    Case(
        "coverage reading", lambda: posterior.coverage_reading(EMPTY), ValueError, "'coverage'", "calibrate"
    ),
    Case(
        "units reading", lambda: posterior.units_reading([True]), TypeError, "units is a list", "active_units"
    ),  # type: ignore[arg-type]
)


def compared(other: Any) -> Any:
    return posterior.compare({"a": evidence(1, 2), "b": other})


@table(*EVERY, *SOME, *COMPARISONS)
def test_wrong_input(case: Case) -> None:
    check(case)
