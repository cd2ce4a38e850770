"""Data files that are made to do harm: a sentence each, before the memory is full, that quotes little."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyro_vae.data import load
from pyro_vae.data.idx import read_idx

Make = Callable[[Path], object]

X = np.arange(12.0).reshape(4, 3)


def npy(array: np.ndarray = X) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npy_with(header: str) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + X.tobytes()


def described(shape: str, descr: str = "'<f8'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def members(*given: tuple[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", packed) as archive:
            for name, content in given:
                archive.writestr(name, content)

    return make


def encrypted(path: Path) -> None:
    members(("x.npy", npy()), packed=zipfile.ZIP_STORED)(path)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def packed_unknown(path: Path) -> None:
    members(("x.npy", npy()), packed=zipfile.ZIP_STORED)(path)
    content = bytearray(path.read_bytes())
    content[8] = content[content.rindex(b"PK\x01\x02") + 10] = 97
    path.write_bytes(content)


def claims_16_gigabytes(path: Path) -> None:
    """In the archive's list: 16 MB of it are there, and would be unpacked."""
    members(("x.npy", npy_with(described(f"({2**31},)"))))(path)
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)


def without_index(path: Path) -> None:
    table = pa.table({"a": [1.0, 2.0], "b": [3.0, 5.0]})
    about = json.dumps({"index_columns": ["gone"], "columns": [], "column_indexes": []})
    pq.write_table(table.replace_schema_metadata({b"pandas": about.encode()}), path)


def a_million_times_one(path: Path) -> None:
    """A gigabyte of numbers in some kilobytes."""
    pq.write_table(pa.table({f"c{i}": pa.nulls(10_000_000, pa.float64()) for i in range(14)}), path)


def write(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


ATTACKS: dict[str, tuple[str, Make, str]] = {
    "token error": (".npy", write(npy_with("{'descr': '<f8', 'shape': (")), "it is damaged"),
    "overflow": (".npy", write(npy_with(described("(10**30,)"))), "it is damaged|declares"),
    "huge": (".npy", write(npy_with(described(f"({10**30},)"))), "it declares 8\\d+ bytes of numbers"),
    "huge and empty": (".npy", write(npy_with(described(f"({10**30}, 0)"))), "it is damaged"),
    "terabytes": (".npy", write(npy_with(described(f"({2**40}, 3)"))), "it is truncated: it declares"),
    "negative": (".npy", write(npy_with(described("(-4, 3)"))), "a size in its header is negative"),
    "true": (".npy", write(npy_with(described("(True, 3)"))), "damaged|takes"),
    "no type": (".npy", write(npy_with(described("(4, 3)", "'spam'"))), "it is damaged"),
    "wide type": (".npy", write(npy_with(described("(4, 3)", "'<f800'"))), "it is damaged"),
    "text": (".npy", write(npy_with(described("(4,)", "'<U99999999'"))), "truncated: it declares"),
    "objects": (".npy", write(npy_with(described("(4, 3)", "'|O'"))), "holds Python objects"),
    "deep": (".npy", write(npy_with("(" * 9000)), "it is damaged"),
    "long": (".npy", write(npy_with("x" * 60000)), "it is damaged"),
    "escapes": (".npy", write(npy_with("\x1b[31m" * 5)), "it is damaged"),
    "newest": (".npy", write(b"\x93NUMPY\x09\x09" + npy()[8:]), "its version"),
    "encrypted": (".npz", encrypted, "is encrypted; save it without a password"),
    "packed unknown": (".npz", packed_unknown, "packed in a way that numpy does not use"),
    "packed lzma": (".npz", members(("x.npy", npy()), packed=zipfile.ZIP_LZMA), "packed in a way"),
    "no array": (".npz", members(("x", b"hello" * 9)), "its entry 'x' is no array"),
    "names": (".npz", members(*((f"{'n' * 50}{i}.npy", npy()) for i in range(9))), "x is not among them"),
    "no x": (".npz", members(), "its arrays are none"),
    "scalar x": (".npz", members(("x.npy", npy(np.array(1.0))), ("y.npy", npy())), "y has shape"),
    "16 GB in the list": (".npz", claims_16_gigabytes, "it unpacks to 4.3 GB from"),
    "16 GB in the header": (
        ".npz", members(("x.npy", npy_with(described(f"({2**31},)")))), "declares 17179869184 bytes"
    ),
    "objects in npz": (".npz", members(("x.npy", npy_with(described("(4, 3)", "'|O'")))), "Python objects"),
    "header in npz": (".npz", members(("x.npy", npy_with("{'descr': '<f8', 'shape': ("))), "it is damaged"),
    "no index": (".parquet", without_index, "cannot be read as a parquet file"),
    "nulls": (".parquet", a_million_times_one, "it unpacks to 1.1 GB from"),
    "long cell": (".csv", write(b"a,b\n1," + b"s" * 10000 + b"\n2,3\n"), "is not a number"),
    "long name": (".csv", write(b"a," + b"s" * 10000 + b"\n1,x\n2,3\n"), "is not a number"),
    "long name of a gap": (".csv", write(b"a," + b"s" * 10000 + b"\n1,2\n2,\n"), "holds nan in row 1"),
    "long type": (".npy", write(npy(np.zeros(4, [("s" * 5000, "f8")]))), "save it as floats"),
}  # fmt: skip


@contextmanager
def most_memory() -> Iterator[Callable[[], int]]:
    """How many bytes more this process has held inside than before, by the kernel's own mark. Not by
    tracemalloc: threads of pyarrow that free what they have read crash where it begins or ends."""

    def held(what: str) -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
        return 1024 * int(line.split()[1])

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no marks of memory on this system")
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    yield lambda: held("VmHWM") - before


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sentence_each(name: str, tmp_path: Path) -> None:
    suffix, make, told = ATTACKS[name]
    path = tmp_path / f"mine{suffix}"
    make(path)
    with most_memory() as most, pytest.raises(ValueError, match=told) as caught:
        load(path)
    message = str(caught.value)
    assert "mine" in message
    assert message.isprintable()
    assert len(message) - len(str(path)) < 450
    assert not any(letter * 81 in message for letter in "snx")
    assert most() < 50e6


def test_a_column_that_a_likelihood_cannot_give_is_quoted_in_brief(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(b"a," + b"s" * 10000 + b"\n1,-2\n2,3\n")
    with pytest.raises(ValueError, match="-2") as caught:
        load(tmp_path / "mine.csv", likelihood="poisson")
    assert "s" * 81 not in str(caught.value)


def test_what_is_zipped_behind_three_images_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    header = b"\0\0\x08\x03" + struct.pack(">III", 3, 2, 2)
    with gzip.open(path, "wb", 1) as file:
        file.write(header + bytes(12))
        for _ in range(60):
            file.write(bytes(10**6))
    told = r"is corrupt: shape \(3, 2, 2\) needs 28 bytes and the file has more"
    with most_memory() as most, pytest.raises(ValueError, match=told):
        read_idx(path)
    assert most() < 20e6


@pytest.mark.parametrize("sizes", [(2**31, 64, 64), (2**32 - 1,) * 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_images_that_are_not_there(sizes: tuple[int, ...], zipped: bool, tmp_path: Path) -> None:
    content = b"\0\0\x08\x03" + struct.pack(">III", *sizes) + bytes(100)
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=r"it unpacks to|images is truncated"):
        read_idx(path)
