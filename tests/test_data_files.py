"""A user's own files: what they become, and a sentence for each fault."""

import gzip
import pickle

import numpy as np
import pandas as pd
import pytest

from pyro_vae import data

REAL = np.array([[0.5, -1.0], [2.0, 3.0], [1.0, 0.0]])
COUNTS = np.array([[0, 3], [7, 1], [2, 2]])
BINARY = np.array([[0, 1], [1, 1], [1, 0]])


def write(folder, suffix, values, **kwargs):
    path = folder / f"mine{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez(path, **(kwargs or {"x": values}))
    else:
        frame = pd.DataFrame(values, columns=[f"c{i}" for i in range(np.shape(values)[1])])
        getattr(frame, f"to_{suffix[1:]}")(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("values", "likelihood"), [(REAL, "normal"), (COUNTS, "poisson"), (BINARY, "bernoulli")]
)
def test_every_format_gives_the_values_and_a_likelihood(tmp_path, suffix, values, likelihood):
    ours = data.load(write(tmp_path, suffix, values))
    np.testing.assert_array_equal(ours.x, values)
    assert (ours.name, ours.x.dtype, ours.likelihood) == ("mine", np.float32, likelihood)
    assert ours.columns == (("c0", "c1") if suffix in {".csv", ".parquet"} else None)


@pytest.mark.parametrize(
    ("likelihood", "arguments", "expected"),
    [
        ("negative-binomial", {}, {}),
        ("binomial", {}, {"total_count": 7}),
        ("binomial", {"total_count": 9}, {"total_count": 9}),
        ("categorical", {}, {"categories": 8}),
        ("normal", {"scale": 0.5}, {"scale": 0.5}),
    ],
)
def test_the_likelihood_can_be_named(tmp_path, likelihood, arguments, expected):
    ours = data.load(write(tmp_path, ".npy", COUNTS), likelihood=likelihood, likelihood_args=arguments)
    assert (ours.likelihood, ours.likelihood_args) == (likelihood, expected)


@pytest.mark.parametrize(
    ("shape", "image_shape"), [((3, 4), None), ((3, 2, 5), (2, 5)), ((3, 2, 4, 5), (2, 4, 5))]
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_may_be_images(tmp_path, suffix, shape, image_shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ours = data.load(write(tmp_path, suffix, values))
    assert ours.image_shape == image_shape
    assert (ours.likelihood, ours.likelihood_args) == ("binomial", {"total_count": 255})
    np.testing.assert_array_equal(ours.x, values.reshape(3, -1))


def test_float32_stays_memory_mapped_and_the_file_as_it_is(tmp_path):
    path = write(tmp_path, ".npy", REAL.astype(np.float32))
    before = path.read_bytes()
    x = data.load(path).x
    assert isinstance(x, np.memmap)
    x[0, 0] = 9.0
    assert path.read_bytes() == before
    assert not isinstance(data.load(write(tmp_path, ".npy", REAL)).x, np.memmap)


def test_labels(tmp_path):
    labels = np.array([2, 0, 1])
    np.testing.assert_array_equal(data.load(write(tmp_path, ".npz", None, x=REAL, y=labels)).y, labels)
    np.testing.assert_array_equal(data.load(write(tmp_path, ".npz", None, only=REAL)).x, REAL)
    frame = pd.DataFrame({"a": [1.0, 2.0], "kind": ["x", "y"], "b": [0.5, 0.1]})
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"labelled.{suffix}"
        getattr(frame, f"to_{suffix}")(path, index=False)
        ours = data.load(path, label="kind")
        assert list(ours.y) == ["x", "y"]
        assert ours.columns == ("a", "b")


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1.5,2\n3,4\n", ("0", "1")),
        ("1,1\n3,4\n", ("0", "1")),
        ("a,b\n1.5,2\n3,4\n", ("a", "b")),
        ("0,1\n1.5,2\n3,4\n", ("0", "1")),
        ("a,b\nTrue,2\nFalse,4\n", ("a", "b")),
    ],
)
def test_csv_with_and_without_a_header(tmp_path, text, columns):
    path = tmp_path / "mine.CSV"
    path.write_text(text)
    ours = data.load(path)
    assert ours.columns == columns
    assert ours.x.shape == (2, 2)


def object_array(path):
    np.save(path, np.array([[1, None]], dtype=object))


def object_archive(path):
    np.savez(path, x=np.array([[1, None]], dtype=object))


def text(content):
    return lambda path: path.write_text(content)


def array(values):
    return lambda path: np.save(path, np.asarray(values))


def cut(make, keep):
    """A file that ends too early."""

    def write(path):
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return write


def table(**columns):
    return lambda path: pd.DataFrame(columns).to_parquet(path, index=False)


def archive(**arrays):
    return lambda path: np.savez(path, **arrays)


FAULTS = {
    "object dtype": (".npy", object_array, "never unpickled"),
    "object dtype in an archive": (".npz", object_archive, "never unpickled"),
    "a pickle": (".npy", lambda path: path.write_bytes(pickle.dumps([1, 2])), "not an .npy file"),
    "text": (".npy", array([["a", "b"]]), "has dtype <U1"),
    "complex": (".npy", array([[1j, 2]]), "has dtype complex128"),
    "a vector": (".npy", array([1.0, 2.0]), r"has shape \(2,\)"),
    "five dimensions": (".npy", array(np.zeros((1, 1, 1, 1, 1))), r"has shape \(1, 1, 1, 1, 1\)"),
    "channels last": (".npy", array(np.zeros((2, 8, 8, 3))), "channels last"),
    "no rows": (".npy", array(np.zeros((0, 3))), r"is empty: its shape is \(0, 3\)"),
    "no columns": (".npy", array(np.zeros((3, 0))), r"is empty: its shape is \(3, 0\)"),
    "constant": (".npy", array(np.ones((3, 2))), "is constant"),
    "NaN": (".npy", array([[1, 2], [3, np.nan]]), r"holds nan in row 1, column 1; drop the row or impute"),
    "infinity": (".npy", array([[1, 2], [-np.inf, 2]]), r"holds -inf in row 1, column 0; drop"),
    "too large": (".npy", array([[1, 2], [1e300, 2]]), r"holds 1e\+300 in row 1, column 0; rescale"),
    "nothing": (".npy", text(""), "not an .npy file"),
    "truncated": (".npy", cut(array(np.eye(30)), 0.5), r"cannot be read"),
    "truncated in the header": (".npy", cut(array(np.eye(3)), 0.2), "cannot be read"),
    "truncated archive": (".npz", cut(archive(x=np.eye(30)), 0.7), "truncated"),
    "not an archive": (".npz", text("hello"), "no zip archive"),
    "no x": (".npz", archive(a=np.eye(2), b=np.eye(2)), "its arrays are a, b"),
    "labels of another length": (".npz", archive(x=np.eye(3), y=np.arange(2)), r"y has shape \(2,\)"),
    "empty table": (".csv", text(""), "No columns to parse"),
    "header only": (".csv", text("a,b\n"), r"is empty: its shape is \(0, 2\)"),
    "ragged": (".csv", text("a,b\n1,2\n1,2,3\n"), "cannot be read as a table"),
    "not text": (".csv", lambda path: path.write_bytes(b"a,b\n\xff\xfe,1\n"), "cannot be read as a table"),
    "missing value": (".csv", text("a,b\n1,2\n3,\n"), r"holds nan in row 1, column 'b'; drop"),
    "a word": (
        ".csv",
        text("a,b\n1,2\n3,four\n"),
        r"holds 'four' in row 1, column 'b', and that is not a number",
    ),
    "constant table": (".csv", text("a,b\n1,2\n1,2\n"), "is constant"),
    "dates": (".parquet", table(a=[1.0], t=pd.to_datetime(["2020-01-01"])), r"Timestamp.*column 't'"),
    "truncated parquet": (".parquet", cut(table(a=[1.0, 2.0]), 0.5), "cannot be read as a parquet file"),
    "not parquet": (".parquet", text("hello"), "cannot be read as a parquet file"),
}


@pytest.mark.parametrize(("suffix", "make", "sentence"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_a_sentence_that_names_the_file(tmp_path, suffix, make, sentence):
    path = tmp_path / f"bad{suffix}"
    make(path)
    with pytest.raises(ValueError, match=rf"bad{suffix} .*{sentence}"):
        data.load(path)


@pytest.mark.parametrize(
    ("likelihood", "place"),
    [
        (
            "poisson",
            r"bad.csv holds -2 in row 1, column 'b'\. A Poisson likelihood needs non-negative integers",
        ),
        ("binomial", r"bad.csv holds -2 in row 1, column 'b'\. A Binomial\(3\)"),
        ("bernoulli", r"bad.csv holds 3 in row 1, column 'a'\. A Bernoulli"),
    ],
)
def test_values_that_the_likelihood_cannot_give(tmp_path, likelihood, place):
    path = tmp_path / "bad.csv"
    path.write_text("a,b\n1,0\n3,-2\n")
    with pytest.raises(ValueError, match=place):
        data.load(path, likelihood=likelihood)
    assert data.load(path).likelihood == "normal"


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (("mnits",), ValueError, r"'mnits' is neither a data set .* Did you mean 'mnist'\?"),
        (("nowhere/at_all",), ValueError, "nor a path that ends in"),
        (("nowhere.csv",), FileNotFoundError, "there is no file nowhere.csv"),
        ((".",), ValueError, "is a folder; name the data set, and give the folder as root"),
    ],
)
def test_unknown_names_and_missing_files(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        data.load(*arguments)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"likelihood": "gauss"}, "likelihood is 'gauss'"),
        ({"likelihood_args": {"total_count": 3}}, "likelihood_args is .* give likelihood"),
        ({"label": "c0"}, "label is 'c0', a column of a table"),
        ({"root": "."}, "are for named data sets"),
        ({"part": "test"}, "are for named data sets"),
        ({"likelihood": "normal", "likelihood_args": {"sigma": 1}}, "cannot be made from"),
    ],
)
def test_arguments_that_do_not_belong(tmp_path, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.load(write(tmp_path, ".npy", REAL), **kwargs)


def test_a_label_that_is_no_column(tmp_path):
    with pytest.raises(ValueError, match=r"label is 'd', which is no column of .*mine.csv; give one of"):
        data.load(write(tmp_path, ".csv", REAL), label="d")


def test_a_gzipped_archive_is_not_mistaken(tmp_path):
    path = tmp_path / "mine.npy"
    path.write_bytes(gzip.compress(b"\x93NUMPY"))
    with pytest.raises(ValueError, match="lacks numpy's first bytes"):
        data.load(path)


def test_faults_beyond_the_first_chunk_keep_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.files._VALUES_AT_ONCE", 4)
    values = np.random.default_rng(0).normal(size=(9, 2))
    values[7, 1] = np.nan
    with pytest.raises(ValueError, match="row 7, column 1"):
        data.load(write(tmp_path, ".npy", values))
