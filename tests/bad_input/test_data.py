"""Wrong input to data sets: names, files, splits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import DataSet, DynamicBinarization, binarize, split, standardize
from tests.bad_input.cases import Case, check, table

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)
ARRAY = "n, features"


def ramp(**options: Any) -> DataSet:
    return DataSet(**{"name": "ramp", "x": ROWS, **options})


CASES = (
    Case("unknown name", lambda: data.load("minst"), ValueError, "'minst'", "'mnist'"),
    Case("no near name", lambda: data.load("qqq"), ValueError, "'qqq'", ".npy, .npz"),
    Case("a number", lambda: data.load(3), TypeError, "name_or_path is 3", "path"),  # type: ignore[arg-type]
    Case("None", lambda: data.load(None), TypeError, "name_or_path is None", "path"),  # type: ignore[arg-type]
    Case("an array", lambda: data.load(ROWS), TypeError, "name_or_path", "DataSet(name, x)"),  # type: ignore[arg-type]
    Case("an empty name", lambda: data.load(""), ValueError, "''", "digits"),
    Case("no file", lambda: data.load("nowhere.csv"), FileNotFoundError, "nowhere.csv", "no file"),
    Case("a pickle", lambda: data.load("model.pkl"), ValueError, "'model.pkl'", ".npy, .npz"),
    Case("digits from a folder", lambda: data.load("digits", root="."), ValueError, "root", "neither"),
    Case("digits in part", lambda: data.load("digits", part="train"), ValueError, "part", "neither"),
    Case("no such part", lambda: data.load("mnist", part="valid"), ValueError, "part is 'valid'", '"test"'),  # type: ignore[arg-type]
    Case(
        "root without files",
        lambda: data.load("mnist", root="docs"),
        FileNotFoundError,
        "root is 'docs'",
        "train-images",
    ),
    Case("root a number", lambda: data.load("mnist", root=3), TypeError, "root is 3", "folder"),  # type: ignore[arg-type]
    Case(
        "label of digits",
        lambda: data.load("digits", label="y"),
        ValueError,
        "label is 'y'",
        "brings its labels",
    ),
    Case(
        "likelihood unknown", lambda: data.load("digits", likelihood="gauss"), ValueError, "'gauss'", "normal"
    ),
    Case(
        "likelihood a number",
        lambda: data.load("digits", likelihood=1),
        ValueError,
        "likelihood is 1",
        "normal",
    ),  # type: ignore[arg-type]
    Case(
        "arguments alone",
        lambda: data.load("digits", likelihood_args={"total_count": 16}),
        ValueError,
        "likelihood_args is {'total_count': 16}",
        "give likelihood",
    ),
    Case(
        "arguments unknown",
        lambda: data.load("digits", likelihood="normal", likelihood_args={"sigma": 1}),
        ValueError,
        "'sigma'",
        "It takes scale",
    ),
    Case(
        "too small a total",
        lambda: data.load("digits", likelihood="binomial", likelihood_args={"total_count": 4}),
        ValueError,
        "digits holds",
        "right total_count",
    ),
    Case("x a list", lambda: ramp(x=[[1.0]]), TypeError, "x is a list", "np.asarray"),
    Case("x a tensor", lambda: ramp(x=torch.zeros(3, 2)), TypeError, "x is a Tensor", ".numpy()"),
    Case("x of text", lambda: ramp(x=np.array([["a"]])), TypeError, "dtype <U1", "numbers"),
    Case("x flat", lambda: ramp(x=ROWS[:, 0]), ValueError, "x has shape (6,)", ARRAY),
    Case("y too short", lambda: ramp(y=np.zeros(3)), ValueError, "y has 3 labels", "6 observations"),
    Case("image_shape", lambda: ramp(image_shape=(3, 3)), ValueError, "image_shape is (3, 3)", "2 features"),
    Case("columns", lambda: ramp(columns=("a",)), ValueError, "columns is ('a',)", "2 features"),
    Case("no images", lambda: ramp().images, ValueError, "no image_shape", "not images"),
    Case("split all", lambda: split(ramp(), 1.0), ValueError, "held_out is 1.0", "empty"),
    Case("split none", lambda: split(ramp(), 0), ValueError, "held_out is 0", "empty"),
    Case("split more", lambda: split(ramp(), 6), ValueError, "held_out is 6", "empty"),
    Case("split negative", lambda: split(ramp(), -0.2), ValueError, "held_out is -0.2", "empty"),
    Case("split 3.5", lambda: split(ramp(), 3.5), ValueError, "held_out is 3.5", "share between 0 and 1"),
    Case("split NaN", lambda: split(ramp(), np.nan), ValueError, "held_out is nan", "share between 0 and 1"),
    Case("split text", lambda: split(ramp(), "0.2"), TypeError, "held_out is '0.2'", "share between 0 and 1"),  # type: ignore[arg-type]
    Case("split bool", lambda: split(ramp(), True), TypeError, "held_out is True", "share between 0 and 1"),
    Case("split seed", lambda: split(ramp(), seed=-1), ValueError, "seed is -1", "at least 0"),
    Case("split seed text", lambda: split(ramp(), seed="a"), ValueError, "seed is 'a'", "integer"),  # type: ignore[arg-type]
    Case("split an array", lambda: split(ROWS), TypeError, "data is an ndarray", "DataSet(name, x)"),  # type: ignore[arg-type]
    Case(
        "standardize an array", lambda: standardize(ROWS), TypeError, "data is an ndarray", "DataSet(name, x)"
    ),  # type: ignore[arg-type]
    Case(
        "standardize like an array",
        lambda: standardize(ramp(), like=ROWS),
        TypeError,
        "like is an ndarray",
        "DataSet(name, x)",
    ),  # type: ignore[arg-type]
    Case(
        "standardize another width",
        lambda: standardize(ramp(), like=ramp(x=np.eye(3, dtype=np.float32))),
        ValueError,
        "like has 3 features",
        "as many",
    ),
    Case("standardize a constant", lambda: standardize(ramp(x=ROWS * 0)), ValueError, "column 0", "drop it"),
    Case("standardize NaN", lambda: standardize(ramp(x=ROWS / 0)), ValueError, "ramp", "impute"),
    Case(
        "binarize bytes",
        lambda: binarize(ROWS),
        ValueError,
        "intensities holds 2 at index (1, 0)",
        "divide by",
    ),
    Case("binarize NaN", lambda: binarize(ROWS * np.nan), ValueError, "intensities holds nan", "[0, 1]"),
    Case("binarize a list", lambda: binarize([0.5, "a"]), TypeError, "intensities", "numbers in [0, 1]"),  # type: ignore[arg-type]
    Case("binarize seed", lambda: binarize(ROWS * 0, seed=-1), ValueError, "seed is -1", "at least 0"),
    Case("dynamic bytes", lambda: DynamicBinarization(ROWS), ValueError, "intensities holds 2", "divide by"),
    Case("dynamic text", lambda: DynamicBinarization("mnist"), TypeError, "intensities", "numbers in [0, 1]"),  # type: ignore[arg-type]
    Case(
        "dynamic whole",
        lambda: DynamicBinarization(torch.ones(3).long()),
        TypeError,
        "intensities",
        "float()",
    ),
)


@pytest.mark.filterwarnings("ignore:invalid value|divide by zero:RuntimeWarning")
@table(*CASES)
def test_wrong_input(case: Case) -> None:
    check(case)


def csv(text: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(".csv").write_text(text) and None


def npy(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path.with_suffix(".npy"), array)


def npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path.with_suffix(".npz"), **arrays)


def parquet(frame: pd.DataFrame) -> Callable[[Path], None]:
    return lambda path: frame.to_parquet(path.with_suffix(".parquet"))


def raw(suffix: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(suffix).write_bytes(content) and None


NAN = np.array([[1.0, np.nan], [2.0, 3.0]])
FILES = (
    ("csv: empty", csv(""), "mine.csv", "cannot be read as a table"),
    ("csv: header only", csv("a,b\n"), "is empty", "shape is (0, 2)"),
    ("csv: ragged", csv("a,b\n1,2\n1,2,3\n"), "mine.csv", "line 3"),
    ("csv: text", csv("a,b\n1,2\nred,4\n"), "'red' in row 1, column 'a'", "encode the column"),
    ("csv: a gap", csv("a,b\n1,2\n,4\n"), "nan in row 1, column 'a'", "impute"),
    ("csv: infinite", csv("a,b\n1,2\ninf,4\n"), "inf in row 1, column 'a'", "drop the row"),
    ("csv: too large", csv("a,b\n1,2\n1e300,4\n"), "1e+300 in row 1, column 'a'", "rescale"),
    ("csv: constant", csv("a,b\n1,1\n1,1\n"), "constant", "nothing to model"),
    ("csv: a column twice", csv("a,a\n1,2\n3,4\n"), "", ""),
    ("csv: bytes", raw(".csv", b"\xff\xfe\x00\x81" * 40), "mine.csv", "cannot be read as a table"),
    ("csv: a web page", raw(".csv", b"<html><p>404</p></html>"), "mine.csv", "the table itself"),
    ("npy: NaN", npy(NAN), "nan in row 0, column 1", "impute"),
    ("npy: objects", npy(np.array([None, {}])), "dtype object", "plain numbers"),
    ("npy: text", npy(np.array([["a", "b"]])), "dtype <U1", "floats or integers"),
    ("npy: complex", npy(np.ones((3, 2), complex)), "dtype complex128", "floats or integers"),
    ("npy: records", npy(np.zeros(3, [("a", "f4")])), "dtype [('a', '<f4')]", "floats or integers"),
    ("npy: flat", npy(np.arange(4.0)), "shape (4,)", "(n, features)"),
    ("npy: a number", npy(np.float64(3)), "shape ()", "(n, features)"),
    ("npy: 5 axes", npy(np.zeros((2, 2, 2, 2, 2))), "shape (2, 2, 2, 2, 2)", "(n, channels, height, width)"),
    ("npy: no rows", npy(np.zeros((0, 3))), "empty", "(0, 3)"),
    ("npy: no columns", npy(np.zeros((3, 0))), "empty", "(3, 0)"),
    ("npy: channels last", npy(np.random.default_rng(0).random((2, 8, 8, 3))), "channels last", "transpose"),
    ("npy: truncated", raw(".npy", b"\x93NUMPY\x01\x00v\x00{"), "mine.npy", "cannot be read"),
    ("npy: foreign", raw(".npy", b"hello"), "mine.npy", "not an .npy file"),
    ("npz: two arrays", npz(a=NAN, b=NAN), "its arrays are a, b", "x is not among them"),
    ("npz: labels", npz(x=np.eye(3), y=np.zeros(2)), "y has shape (2,)", "x has 3 rows"),
    ("npz: foreign", raw(".npz", b"PK hello"), "mine.npz", "no zip archive"),
    ("parquet: foreign", raw(".parquet", b"hello"), "mine.parquet", "cannot be read as a parquet file"),
    ("parquet: text", parquet(pd.DataFrame({"a": ["red"]})), "'red' in row 0, column 'a'", "label='a'"),
    (
        "parquet: dates",
        parquet(pd.DataFrame({"a": pd.to_datetime(["2020"])})),
        "column 'a'",
        "encode the column",
    ),
)


@pytest.mark.filterwarnings("ignore:.*invalid value.*:RuntimeWarning")
@pytest.mark.parametrize(("about", "write", "place", "remedy"), FILES, ids=[row[0] for row in FILES])
def test_wrong_files(
    about: str, write: Callable[[Path], Any], place: str, remedy: str, tmp_path: Path
) -> None:
    write(tmp_path / "mine")
    (path,) = tmp_path.iterdir()
    if about == "csv: a column twice":  # pandas renames the second
        assert data.load(path).columns == ("a", "a.1")
        return
    check(Case(about, lambda: data.load(path), ValueError, place, remedy))


def test_wrong_arguments_for_a_file(tmp_path: Path) -> None:
    frame = tmp_path / "mine.csv"
    frame.write_text("a,b\n1.5,2\n3,4\n")
    array = tmp_path / "mine.npy"
    np.save(array, ROWS + 0.5)
    cases = (
        Case("label", lambda: data.load(frame, label="c"), ValueError, "label is 'c'", "['a', 'b']"),
        Case(
            "label a number", lambda: data.load(frame, label=1), TypeError, "label is 1", "name of a column"
        ),  # type: ignore[arg-type]
        Case("label of an array", lambda: data.load(array, label="a"), ValueError, "label is 'a'", "arrays"),
        Case("root", lambda: data.load(frame, root=tmp_path), ValueError, "root", "leave them out"),
        Case("part", lambda: data.load(frame, part="test"), ValueError, "part", "leave them out"),
        Case(
            "support",
            lambda: data.load(array, likelihood="bernoulli"),
            ValueError,
            "0.5 in row 0",
            "binarize",
        ),
        Case(
            "counts",
            lambda: data.load(frame, likelihood="poisson"),
            ValueError,
            "1.5 in row 0, column 'a'",
            "Normal",
        ),
        Case("a folder", lambda: data.load(tmp_path), ValueError, str(tmp_path), "as root"),
    )
    for case in cases:
        check(case)
