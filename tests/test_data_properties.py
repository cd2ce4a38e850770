"""What holds for any data: files give back what was written, and splits lose nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pyro_vae import data

Array = NDArray[np.float32]
TABLES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 20), st.integers(1, 6)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
)
SUFFIXES = [".csv", ".npy", ".npz", ".parquet"]


def write(values: Array, path: Path) -> None:
    names = [f"c{i}" for i in range(values.shape[1])]
    match path.suffix:
        case ".npy":
            np.save(path, values)
        case ".npz":
            np.savez(path, x=values)
        case ".csv":
            pd.DataFrame(values, columns=names).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame(values, columns=names).to_parquet(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None)
@given(values=TABLES)
def test_a_file_gives_back_what_was_written(suffix: str, values: Array) -> None:
    assume((values != values[0]).any())  # constant data are refused
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        write(values, path)
        found = data.load(path, likelihood="normal")
        np.testing.assert_array_equal(found.x, values)
        assert found.x.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(TABLES, st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_a_split_is_a_partition(values: Array, share: float, seed: int) -> None:
    n = len(values)
    assume(0 < round(share * n) < n)
    labels = np.arange(n)
    train, held_out = data.split(data.DataSet("any", values, labels), share, seed=seed)
    assert len(held_out) == round(share * n)
    assert sorted([*train.y, *held_out.y]) == labels.tolist()
    for part in (train, held_out):
        assert (np.diff(part.y) > 0).all() or len(part) == 1  # in the order of the whole
        np.testing.assert_array_equal(part.x, values[part.y])
    again = data.split(data.DataSet("any", values, labels), share, seed=seed)
    np.testing.assert_array_equal(again[1].y, held_out.y)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(2, 20), st.integers(1, 6)), elements=st.floats(-100, 100, width=16)
    )
)
def test_standardized_columns_have_mean_0_and_deviation_1(values: Array) -> None:
    assume((values.std(0) > 1e-2).all())
    x = data.standardize(data.DataSet("any", values)).x.astype(np.float64)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-4)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1, width=32)), st.integers(0, 2**31)
)
def test_binarized_values_are_0_and_1_and_certain_where_the_intensity_is(values: Array, seed: int) -> None:
    drawn = data.binarize(values, seed=seed)
    assert np.isin(drawn, [0, 1]).all()
    assert (drawn[values == 0] == 0).all()
    assert (drawn[values == 1] == 1).all()
