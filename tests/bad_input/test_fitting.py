"""Wrong input to ``fit``, ``sweep``, the objectives and saved fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import Fit, fit, sweep
from pyro_vae.guides import AmortizedNormal
from pyro_vae.models import VAE, MLPDecoder, likelihoods
from pyro_vae.svi import ELBO, IWAE, STL, Renyi
from tests.bad_input import programs
from tests.bad_input.cases import Case, check, table
from tests.bad_input.programs import X

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
DATA = np.random.default_rng(0).normal(size=(6, 3))
INTEGER, NUMBER = "positive integer", "positive number"


def run(data: Any = X, model: Any = programs.model, guide: Any = programs.guide, **options: Any) -> Fit:
    return fit(model, guide, data, **{"steps": 1, "device": "cpu", "progress": False, **options})


def pair(likelihood: Any = "normal") -> tuple[VAE, AmortizedNormal]:
    model = VAE(MLPDecoder(2, [4], 3), 2, likelihood)
    return model, AmortizedNormal(model, nn.Linear(3, 4))


def run_vae(data: Any, likelihood: Any = "normal", **options: Any) -> Fit:
    model, guide = pair(likelihood)
    return run(data, model, guide, **options)


def swept(seeds: Any = (0, 1), make_pair: Any = pair, **options: Any) -> Any:
    return sweep(make_pair, seeds, DATA, **{"steps": 1, "device": "cpu", "progress": False, **options})


class Strange:
    """Neither tensor nor array."""

    def __len__(self) -> int:
        return 6


DATA_CASES = (
    Case("data None", lambda: run(None), TypeError, "data is None", "give a tensor"),
    Case("data a list", lambda: run([[0.0]]), TypeError, "data is a list", "numpy array"),
    Case("data a number", lambda: run(3.0), TypeError, "data is a float", "numpy array"),
    Case("data text", lambda: run("digits"), TypeError, "data is a str", "pyro_vae.data.load"),
    Case("data an object", lambda: run(Strange()), TypeError, "data is a Strange", "numpy array"),
    Case("data of objects", lambda: run(np.array([None, 1])), TypeError, "dtype object", "give numbers"),
    Case("data of text", lambda: run(np.array(["a", "b"])), TypeError, "dtype <U1", "give numbers"),
    Case("data of dates", lambda: run(np.array(["2020"], "M8[Y]")), TypeError, "datetime64", "give numbers"),
    Case("data complex", lambda: run(np.zeros((3, 2), complex)), TypeError, "complex", "give numbers"),
    Case("data a complex tensor", lambda: run(X.to(torch.complex64)), TypeError, "complex", "give numbers"),
    Case("data sparse", lambda: run(X.to_sparse()), TypeError, "data is a sparse", "to_dense()"),
    Case("data empty", lambda: run(X[:0]), ValueError, "(0, 3)", "no observation"),
    Case("data without columns", lambda: run(X[:, :0]), ValueError, "(6, 0)", "no number"),
    Case("data a scalar", lambda: run(torch.tensor(1.0)), ValueError, "shape ()", "no observation"),
    Case("data an empty tuple", lambda: run(()), ValueError, "data is an empty tuple", "give a tensor"),
    Case(
        "data NaN", lambda: run(X.clone().fill_(np.nan)), ValueError, "data is nan at index (0, 0)", "impute"
    ),
    Case("data infinite", lambda: run(np.full((3, 3), np.inf)), ValueError, "data is inf", "impute"),
    Case("data overflows", lambda: run_vae(np.full((3, 3), 1e300)), ValueError, "data is 1e+300", "rescale"),
    Case("tuple with a list", lambda: run((X, [0])), TypeError, "data[1] is a list", "numpy array"),
    Case("tuple with NaN", lambda: run((X, X / 0)), ValueError, "data[1] is nan", "impute"),
    Case("tuple of two lengths", lambda: run((X, X[:4])), ValueError, "[4, 6] observations", "equally many"),
    Case("tuple for one argument", lambda: run((X, X)), TypeError, "2 arguments", "give the parts"),
    Case(
        "data of 5 columns", lambda: run_vae(X.repeat(1, 2)), ValueError, "(6, 6)", "give data of the shape"
    ),
    Case("validation NaN", lambda: run(validation=X / 0), ValueError, "validation is nan", "impute"),
    Case("validation a list", lambda: run(validation=[1]), TypeError, "validation is a list", "numpy array"),
    Case(
        "validation empty",
        lambda: run(validation=X[:0]),
        ValueError,
        "validation has shape",
        "no observation",
    ),
    Case(
        "validation of 5 columns",
        lambda: run_vae(DATA, validation=np.zeros((4, 5))),
        ValueError,
        "validation, called with 1 argument of shape (4, 5)",
        "give validation of the shape",
    ),
    Case(
        "an empty loader", lambda: run(DataLoader(TensorDataset(X[:0]))), ValueError, "data", "no observation"
    ),
    Case("an empty data set", lambda: run(TensorDataset(X[:0])), ValueError, "data", "no observation"),
    Case(
        "a loader of names",
        lambda: run(DataLoader([{"x": row} for row in X], batch_size=3)),  # type: ignore[arg-type]
        TypeError,
        "a batch of data is a dict",
        "tuple",
    ),
)

UNSUPPORTED = tuple(
    Case(
        f"{name}: {value}", lambda k=likelihood, v=value: run_vae(DATA * 0 + v, k), ValueError, place, remedy
    )
    for name, likelihood, value, place, remedy in (
        ("Bernoulli", "bernoulli", 0.5, "data holds 0.5 in row 0, column 0", "binarize"),
        ("Binomial", likelihoods.Binomial(4), 5.0, "data holds 5", "total_count"),
        ("Poisson", "poisson", -1.0, "data holds -1", "use Normal"),
        ("Negative binomial", "negative-binomial", 0.5, "data holds 0.5", "use Normal"),
        ("Continuous Bernoulli", "continuous-bernoulli", 16.0, "data holds 16", "divide by"),
    )
)
SUPPORT_CASES = (
    *UNSUPPORTED,
    Case(
        "Categorical: 4",
        lambda: run(DATA * 0 + 4, *_categorical()),
        ValueError,
        "data holds 4 in row 0",
        "recode",
    ),
    Case(
        "Bernoulli, held out",
        lambda: run_vae(DATA * 0, "bernoulli", validation=DATA * 0 + 0.5),
        ValueError,
        "validation holds 0.5",
        "binarize",
    ),
)


def _categorical() -> tuple[VAE, AmortizedNormal]:
    model = VAE(MLPDecoder(2, [4], 3, outputs=4), 2, likelihoods.Categorical(4))
    return model, AmortizedNormal(model, nn.Linear(3, 4))


NUMBER_CASES = tuple(
    Case(
        f"{name}={value!r}", lambda n=name, v=value: run(**{n: v}), ValueError, f"{name} is {value!r}", remedy
    )
    for name, values, remedy in (
        ("epochs", (0, -1, 1.5, "10", True, np.nan), INTEGER),
        ("steps", (0, -1, 2.0, "10", False), INTEGER),
        ("batch_size", (0, -8, 32.0, "all", None), INTEGER),
        ("lr", (0, -1e-3, np.nan, np.inf, "1e-3", True, None), NUMBER),
        ("seed", (-1, 1.5, "0", True, None), "integer of at least 0"),
        ("max_norm", (0.0, -1.0, np.nan, "10"), NUMBER),
        ("patience", (0, -1, 2.5, "5"), INTEGER),
    )
    for value in values
)

ARGUMENT_CASES = (
    Case("seed of 2⁶⁴", lambda: run(seed=2**64), ValueError, "seed is 18446744073709551616", "less than"),
    Case(
        "model no program", lambda: run(model="vae"), TypeError, "model is a str", "PyroModule or a function"
    ),
    Case("model a class", lambda: run(model=VAE), TypeError, "model is the class VAE", "call it"),
    Case("guide None", lambda: run(guide=None), TypeError, "guide is None", "PyroModule or a function"),
    Case(
        "guide a class", lambda: run(guide=AmortizedNormal), TypeError, "the class AmortizedNormal", "call it"
    ),
    Case(
        "guide an encoder", lambda: run(guide=nn.Linear(3, 2).double()), ValueError, "'z'", "AmortizedNormal"
    ),
    Case("guide of another site", lambda: run(guide=programs.renamed), ValueError, "'z'", "rename"),
    Case(
        "guide that draws nothing",
        lambda: run(guide=programs.silent),
        ValueError,
        "'z'",
        "add it to the guide",
    ),
    Case("guide of another size", lambda: run(guide=programs.larger), ValueError, "'z'", "one shape in both"),
    Case("guide that draws twice", lambda: run(guide=programs.twice), ValueError, "'z'", "a name of its own"),
    Case(
        "model without argument",
        lambda: run(model=programs.no_argument),
        TypeError,
        "no_argument() takes 0",
        "1 argument",
    ),
    Case(
        "nothing to learn",
        lambda: run(guide=programs.nothing_to_learn),
        ValueError,
        "no parameter",
        "pyro.param",
    ),
    Case(
        "nothing observed",
        lambda: run(model=programs.unobserved),
        ValueError,
        "the model observes nothing",
        "obs=",
    ),
    Case("objective a class", lambda: run(objective=ELBO), TypeError, "the class ELBO", "ELBO()"),
    Case("objective a name", lambda: run(objective="elbo"), TypeError, "objective is str", "ELBO()"),
    Case(
        "objective a class of Pyro",
        lambda: run(objective=Trace_ELBO),
        TypeError,
        "the class Trace_ELBO",
        "pyro_vae.svi.ELBO()",
    ),
    Case("engine unknown", lambda: run(engine="jit"), ValueError, "engine is 'jit'", "'captured'"),
    Case("engine None", lambda: run(engine=None), ValueError, "engine is None", "'captured'"),
    Case("engine a list", lambda: run(engine=["eager"]), ValueError, "engine is ['eager']", "'captured'"),
    Case(
        "cuda-graph on the CPU", lambda: run(engine="cuda-graph"), ValueError, "'cuda-graph'", "device='cuda'"
    ),
    Case("device unknown", lambda: run(device="gpu"), ValueError, "device is 'gpu'", "'cuda'"),
    Case("device a number", lambda: run(device=1.5), ValueError, "device is 1.5", "'cuda'"),
    Case("device None", lambda: run(device=None), ValueError, "device is None", "'auto'"),
    Case("device of no kind", lambda: run(device="meta"), ValueError, "device is 'meta'", "'cpu'"),
    Case("lr_multiplier unknown", lambda: run(lr_multiplier="match"), ValueError, "'match'", "'matched'"),
    Case("patience alone", lambda: run(patience=3), ValueError, "patience is 3", "give validation="),
    Case(
        "optimizer an instance",
        lambda: run(optimizer=_adam()),
        TypeError,
        "optimizer is an Adam",
        "torch.optim.Adam,",
    ),
    Case(
        "optimizer a name",
        lambda: run(optimizer="adam"),
        TypeError,
        "optimizer is a str",
        "torch.optim.AdamW",
    ),
    Case(
        "optimizer of Pyro", lambda: run(optimizer=_pyro_adam()), TypeError, "optimizer", "torch.optim.AdamW"
    ),
    Case(
        "optimizer that makes none",
        lambda: run(optimizer=lambda g, lr: None),
        TypeError,
        "made None",
        "Optimizer",
    ),
    Case(
        "schedule an instance",
        lambda: run(schedule=_schedule()),
        TypeError,
        "schedule",
        "function of the optimizer",
    ),
    Case("schedule a number", lambda: run(schedule=0.9), TypeError, "schedule", "function of the optimizer"),
    Case("callbacks one function", lambda: run(callbacks=print), TypeError, "callbacks", "[callback]"),
    Case("callbacks of numbers", lambda: run(callbacks=[3]), TypeError, "callbacks[0]", "function"),
)


def _adam() -> Any:
    return torch.optim.Adam([X.clone().requires_grad_()])


def _pyro_adam() -> Any:
    return __import__("pyro").optim.Adam({"lr": 1e-3})


def _schedule() -> Any:
    return torch.optim.lr_scheduler.StepLR(_adam(), 1)


OBJECTIVE_CASES = (
    Case("0 particles", lambda: ELBO(num_particles=0), ValueError, "num_particles", INTEGER),
    Case("particles 1.5", lambda: ELBO(num_particles=1.5), ValueError, "num_particles", INTEGER),  # type: ignore[arg-type]
    Case("particles bool", lambda: ELBO(num_particles=True), ValueError, "num_particles", INTEGER),
    Case("weight negative", lambda: ELBO(kl_weight=-1.0), ValueError, "kl_weight", "at least 0"),
    Case("weight NaN", lambda: ELBO(kl_weight=np.nan), ValueError, "kl_weight", "finite number"),
    Case("weight text", lambda: ELBO(kl_weight="1"), ValueError, "kl_weight", "finite number"),  # type: ignore[arg-type]
    Case("weight None", lambda: ELBO(kl_weight=None), ValueError, "kl_weight", "finite number"),  # type: ignore[arg-type]
    Case("analytic_kl text", lambda: ELBO(analytic_kl="yes"), ValueError, "analytic_kl", "True or False"),  # type: ignore[arg-type]
    Case(
        "schedule of weights below 0",
        lambda: run(objective=ELBO(kl_weight=lambda step: -1.0)),
        ValueError,
        "kl_weight(0)",
        "at least 0",
    ),
    Case(
        "schedule of no weights",
        lambda: run(objective=ELBO(kl_weight=lambda step: None)),  # type: ignore[arg-type,return-value]
        ValueError,
        "kl_weight(0)",
        "finite number",
    ),
    Case("IWAE of 0", lambda: IWAE(0), ValueError, "num_particles", INTEGER),
    Case("IWAE of text", lambda: IWAE("8"), ValueError, "num_particles", INTEGER),  # type: ignore[arg-type]
    Case("Rényi of NaN", lambda: Renyi(np.nan, 4), ValueError, "alpha", "finite number"),
    Case("Rényi of text", lambda: Renyi("0.5", 4), ValueError, "alpha", "finite number"),  # type: ignore[arg-type]
    Case("Rényi of -1 draws", lambda: Renyi(0.5, -1), ValueError, "num_particles", INTEGER),
    Case("STL of 0", lambda: STL(num_particles=0), ValueError, "num_particles", INTEGER),
    Case("STL of weight inf", lambda: STL(kl_weight=np.inf), ValueError, "kl_weight", "finite number"),
)

SWEEP_CASES = (
    Case("sweep: seed and seeds", lambda: swept(seed=3), TypeError, "seed", "seeds"),
    Case("sweep: seeds a number", lambda: swept(seeds=3), TypeError, "seeds is 3", "range(3)"),
    Case("sweep: seeds negative", lambda: swept(seeds=[0, -1]), ValueError, "seeds[1] is -1", "at least 0"),
    Case("sweep: seeds text", lambda: swept(seeds="012"), ValueError, "seeds[0] is '0'", "integer"),
    Case("sweep: seeds none", lambda: swept(seeds=[]), ValueError, "seeds", "at least one"),
    Case("sweep: make_pair a pair", lambda: swept(make_pair=pair()), TypeError, "make_pair", "function"),
    Case(
        "sweep: make_pair makes one",
        lambda: swept(make_pair=lambda: pair()[0]),
        TypeError,
        "make_pair",
        "model and a guide",
    ),
    Case("sweep: unknown option", lambda: swept(learning_rate=0.1), TypeError, "'learning_rate'", "fit"),
    Case("sweep: near option", lambda: swept(epoch=1), TypeError, "'epoch'", "did you mean 'epochs'"),
    Case("sweep: lr text", lambda: swept(lr="fast"), ValueError, "lr is 'fast'", NUMBER),
    Case("sweep: lr None", lambda: swept(lr=None), ValueError, "lr is None", NUMBER),
    Case("sweep: batch_size 0", lambda: swept(batch_size=0), ValueError, "batch_size is 0", INTEGER),
    Case("sweep: steps 0", lambda: swept(steps=0), ValueError, "steps is 0", INTEGER),
    Case("sweep: objective a class", lambda: swept(objective=IWAE), TypeError, "the class IWAE", "IWAE(8)"),
    Case("sweep: device unknown", lambda: swept(device="gpu"), ValueError, "device is 'gpu'", "'cuda'"),
    Case("sweep: data NaN", lambda: sweep(pair, [0, 1], X / 0), ValueError, "data is nan", "impute"),
    Case("sweep: data None", lambda: sweep(pair, [0, 1], None), TypeError, "data is None", "numpy array"),
)


@table(*DATA_CASES, *SUPPORT_CASES, *NUMBER_CASES, *ARGUMENT_CASES, *OBJECTIVE_CASES, *SWEEP_CASES)
def test_wrong_input(case: Case) -> None:
    torch.set_default_dtype(torch.float32)
    check(case)


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_where_there_is_none(device: Any) -> None:
    check(Case("cuda", lambda: run(device=device), ValueError, "device is", "use 'cpu'"))
    check(Case("sweep", lambda: swept(device=device), ValueError, "device is", "use 'cpu'"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.set_default_dtype(torch.float32)
    return run_vae(DATA).save(tmp_path / "fit")


def wider() -> tuple[VAE, AmortizedNormal]:
    model = VAE(MLPDecoder(2, [5], 3), 2, "normal")
    return model, AmortizedNormal(model, nn.Linear(3, 4))


def more_latents() -> tuple[VAE, AmortizedNormal]:
    model = VAE(MLPDecoder(3, [4], 3), 3, "normal")
    return model, AmortizedNormal(model, nn.Linear(3, 4))


def test_saved_fits_that_do_not_suit(saved: Path, tmp_path: Path) -> None:
    model, guide = pair()
    cases = (
        Case(
            "no folder", lambda: Fit.load(tmp_path / "no", model, guide), FileNotFoundError, "no", "Fit.save"
        ),
        Case(
            "a file",
            lambda: Fit.load(saved / "fit.json", model, guide),
            FileNotFoundError,
            "fit.json",
            "Fit.save",
        ),
        Case("a number", lambda: Fit.load(3, model, guide), TypeError, "path", "folder"),  # type: ignore[arg-type]
        Case("model text", lambda: Fit.load(saved, "vae", guide), TypeError, "model", "PyroModule or a func"),  # type: ignore[arg-type]
        Case("guide None", lambda: Fit.load(saved, model, None), TypeError, "guide", "PyroModule or a func"),  # type: ignore[arg-type]
        Case("a wider pair", lambda: Fit.load(saved, *wider()), ValueError, "model", "size mismatch"),
        Case("more latents", lambda: Fit.load(saved, *more_latents()), ValueError, "model", "size mismatch"),
        Case(
            "into a file", lambda: run_vae(DATA).save(saved / "fit.json"), OSError, "fit.json", "of a folder"
        ),
        Case("to a number", lambda: run_vae(DATA).save(3), TypeError, "path", "folder"),  # type: ignore[arg-type]
    )
    for case in cases:
        check(case)
