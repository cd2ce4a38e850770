"""How tables are written: read right, or refused with what the reader can do."""

import numpy as np
import pytest

from pyro_vae import data

AB = (("a", "b"), [[1.5, 2.0], [3.0, 4.25]])
COUNTED = (("0", "1"), AB[1])
READ = {
    "commas": ("a,b\n1.5,2\n3,4.25\n", AB),
    "spaces after commas": ("a, b\n1.5, 2\n3, 4.25\n", AB),
    "semicolons": ("a;b\n1.5;2\n3;4.25\n", AB),
    "decimal commas": ("a;b\n1,5;2\n3;4,25\n", AB),
    "decimal commas between tabs": ("a\tb\n1,5\t2\n3\t4,25\n", AB),
    "decimal commas in quotes": ('"a","b"\n"1,5","2"\n"3","4,25"\n', AB),
    "decimal commas without a header": ("1,5;2,0\n3,0;4,25\n", COUNTED),
    "bars": ("a|b\n1.5|2\n3|4.25\n", AB),
    "spaces": ("a b\n1.5 2\n3   4.25\n", AB),
    "numpy's header": ("# a,b\n1.5,2\n3,4.25\n", AB),
    "a byte order mark": ("\ufeffa,b\n1.5,2\n3,4.25\n", AB),
    "blank lines": ("\n\na,b\n1.5,2\n\n3,4.25\n\n", AB),
    "Windows' lines": ("a,b\r\n1.5,2\r\n3,4.25\r\n", AB),
    "an index": (",a,b\n0,1.5,2\n1,3,4.25\n", AB),
    "an index out of order": (",a,b\n7,1.5,2\n1,3,4.25\n", AB),
    "an index above counted names": (",0,1\n0,1.5,2\n1,3,4.25\n", COUNTED),
    "an index of names": ('"","a","b"\n"r1",1.5,2\n"r2",3,4.25\n', AB),
    "an index read and written again": ("Unnamed: 0,a,b\n0,1.5,2\n1,3,4.25\n", AB),
    "row numbers with a name": ("id,a\n1,1.5\n2,3\n3,0.5\n", (("a",), [[1.5], [3.0], [0.5]])),
    "no header": ("1.5,2\n3,4.25\n", COUNTED),
    "no header, equal numbers": ("0.0,0.0\n0.5,0.25\n", (("0", "1"), [[0.0, 0.0], [0.5, 0.25]])),
    "no header, truth values": ("True,False\nFalse,True\n", (("0", "1"), [[1.0, 0.0], [0.0, 1.0]])),
    "names that count": (
        ",".join(map(str, range(12))) + "\n" + "\n".join(",".join([str(i)] * 12) for i in (3, 5)),
        (tuple(map(str, range(12))), [[3.0] * 12, [5.0] * 12]),
    ),
}


@pytest.mark.parametrize(("text", "expected"), READ.values(), ids=READ)
def test_read_right(tmp_path, text, expected):
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode())
    found = data.load(path)
    assert found.columns == expected[0]
    np.testing.assert_array_equal(found.x, expected[1])


REFUSED = {
    "more fields than names": ("a,b\n1.5,2,3\n4.5,5,6\n", "2 names in its header and 3 fields"),
    "separators at the ends": ("a,b\n1,2,\n3,4,\n", "2 names in its header and 3 fields"),
    "more names than fields": ("a,b,c\n1,2\n3,4\n", "3 names in its header and 2 fields"),
    "one longer row": ("a,b\n1,2\n3,4,5\n", "Expected 2 fields in line 3, saw 3"),
    "years as names": ("2019,2020,2021\n1.5,2.5,3\n4,5,6\n", r"header=True \(--header\).*--no-header"),
    "wavelengths as names": ("400.5,401.0,401.5\n1,2,3.5\n4,5,6\n", "may name the columns or be data"),
    "counted names or data": ("0,1\n1,0\n1,1\n", "may name the columns or be data"),
    "a word and numbers": ("name,2019\nAnna,5\nBob,7\n", "may name the columns or be data"),
    "words below no header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", r"'setosa' in row 0.*--label 2"),
    "an index that is none": (",a\n0.5,1.5\n1.5,2\n", "the first column of .* has no name"),
    "thousands": ("a;b\n1,234;2,500\n3,000;4,250\n", "may divide thousands or be a decimal sign"),
    "thousands and decimals": ("a;b\n1.234,5;2,5\n3.000,1;4,2\n", "without a separator of thousands"),
    "two decimal signs": ("a;b\n1.5;2,5\n3.1;4,2\n", "one decimal sign"),
    "a title": ("My data\n\na,b\n1,2\n3,4\n", "1 names in its header and 2 fields"),
    "two separators": ("a;b|c\n1;2|3\n4;5|6\n", r"has both ';' and '\|' in every line"),
    "identifiers": (
        "k,a\n1700000000000000001,1.5\n1700000000000000002,2\n",
        "float64 loses their differences",
    ),
    "timestamps as counts": (
        "t,a\n" + "".join(f"{1_700_000_000 + i},{i % 3}\n" for i in range(9)),
        "differences float32 loses .column 't'.*likelihood='normal'",
    ),
    "a page": ("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "looks like HTML.*download the table"),
    "a page without a type": ("\n<html>\n<head>\n", "looks like HTML"),
    "another alphabet": ("a,b\n1.5,2\n".encode("utf-16"), "save it as text in UTF-8"),
}


@pytest.mark.parametrize(("text", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, text, sentence):
    path = tmp_path / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=sentence):
        data.load(path)


def test_what_is_said_of_a_table_is_done(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("2019,2020,2021\n1.5,2.5,3\n4,5,6\n")
    assert data.load(path, header=True).columns == ("2019", "2020", "2021")
    assert len(data.load(path, header=False)) == 3
    path.write_text("a:b:kind\n1:2.5:x\n4:5:y\n")
    found = data.load(path, separator=":", columns="b", label="kind")
    assert found.columns == ("b",)
    assert found.x.tolist() == [[2.5], [5.0]]
    assert found.y.tolist() == ["x", "y"]
    assert found.left_out == {"kind": "the label", "a": "not among columns"}
    assert data.load(path, separator=":", columns=["b,a"], label="kind").columns == ("b", "a")
    with pytest.raises(ValueError, match=r"columns names 'c', and .* give some of \['a', 'b'"):
        data.load(path, separator=":", columns=["c"])


def test_close_values_are_standardized_before_they_are_rounded(tmp_path):
    t = 1_700_000_000 + np.arange(80)
    path = tmp_path / "mine.csv"
    path.write_text("t,a\n" + "".join(f"{v},{np.sin(v):.4f}\n" for v in t))
    train, held_out = data.split(data.load(path), 0.25)
    x = data.standardize(held_out, like=train).x
    assert x.dtype == np.float32
    expected = (held_out.x[:, 0] - train.x[:, 0].mean()) / train.x[:, 0].std()
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-6)
    np.save(tmp_path / "mine.npy", np.stack([t, t + 0.5], 1))
    assert len(np.unique(data.standardize(data.load(tmp_path / "mine.npy")).x)) == 80


SENTINELS = {
    "-999 twice": ("a,b\n1,2.5\n2,-999\n3,1.5\n1,-999\n", ["column 'b' holds -999 in 2 rows"]),
    "99 among counts": ("a\n1\n0\n2\n99\n1\n99\n3\n", ["column 'a' holds 99 in 2 rows"]),
    "beside one value": ("a,b\n1,4\n1,5\n-9999,6\n-9999,7\n", ["column 'a' holds -9999 in 2 rows"]),
    "two of them": (
        "a\n0.5\n-1e30\n0.7\n999\n-1e30\n999\n0.9\n",
        ["column 'a' holds -1e+30 in 2 rows", "column 'a' holds 999 in 2 rows"],
    ),
    "once": ("a\n1.5\n2\n-999\n3\n", []),
    "near the others": ("a\n90\n95.5\n99\n99\n80\n20\n", []),
    "nothing else": ("a,b\n-999,1.5\n-999,2\n", []),
}


@pytest.mark.parametrize(("text", "notes"), SENTINELS.values(), ids=SENTINELS)
def test_numbers_that_stand_for_missing_values_are_told_and_kept(tmp_path, text, notes):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    found = data.load(path, header=True)
    assert len(found.notes) == len(notes)
    for told, expected in zip(found.notes, notes, strict=True):
        assert told.startswith(f"{expected}, far from its other values")
        assert told in found.description
        assert "(--columns)" in told


def test_such_numbers_in_an_array_have_no_names(tmp_path):
    x = np.ones((50, 3), dtype="f4") * np.arange(50)[:, None]
    x[3:7, 2] = -999
    np.save(tmp_path / "x.npy", x)
    (note,) = data.load(tmp_path / "x.npy").notes
    assert note.startswith("column 2 holds -999 in 4 rows")
    assert "--columns" not in note
