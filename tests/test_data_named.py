"""MNIST and its relatives, from small IDX files of our own and from a stand-in for OpenML."""

import gzip
import struct
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest

from pyro_vae import data
from pyro_vae.data.idx import read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array):
    array = np.asarray(array)
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_set(folder, *, n_train=6, n_test=4, zipped=True, separator="-"):
    rng = np.random.default_rng(0)
    arrays = {}
    for stem, n in (("train", n_train), ("t10k", n_test)):
        arrays[f"{stem}-images{separator}idx3-ubyte"] = rng.integers(0, 256, (n, 3, 2), dtype=np.uint8)
        arrays[f"{stem}-labels{separator}idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0, 2)])
def test_idx_of_every_type_and_shape(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / "some-idx"
    for content in (idx_bytes(array), gzip.compress(idx_bytes(array))):
        path.write_bytes(content)
        ours = read_idx(path)
        assert ours.dtype == array.dtype
        np.testing.assert_array_equal(ours, array)


CONTENT = idx_bytes(np.arange(50, dtype=np.uint8).reshape(2, 5, 5))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not an IDX file"),
        (b"hello", "not an IDX file"),
        (b"\0\0\x07\x01" + CONTENT[4:], "not an IDX file: it starts with the bytes 00 00 07 01"),
        (CONTENT[:9], "truncated: it ends within its header"),
        (CONTENT[:-1], r"truncated: shape \(2, 5, 5\) needs 66 bytes and the file has 65"),
        (CONTENT + b"\0", "corrupt"),
        (gzip.compress(CONTENT, mtime=0)[:-9], "truncated or corrupt"),
        (gzip.compress(CONTENT, mtime=0)[:5], "truncated or corrupt"),
        (
            gzip.compress(CONTENT, mtime=0)[:20] + b"\xff" * 9 + gzip.compress(CONTENT, mtime=0)[29:],
            "truncated or corrupt",
        ),
    ],
)
def test_idx_that_is_damaged(tmp_path, content, sentence):
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad-idx .*{sentence}"):
        read_idx(path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("separator", ["-", "."])
def test_a_folder_of_idx_files(tmp_path, name, zipped, separator):
    arrays = list(write_set(tmp_path, zipped=zipped, separator=separator).values())
    ours = data.load(name, root=tmp_path, likelihood="binomial")
    np.testing.assert_array_equal(ours.images[:, 0], np.concatenate([arrays[0], arrays[2]]))
    np.testing.assert_array_equal(ours.y, np.concatenate([arrays[1], arrays[3]]))
    assert (ours.name, ours.image_shape, ours.likelihood_args) == (name, (3, 2), {"total_count": 255})


def test_parts_and_a_folder_of_the_name(tmp_path):
    (tmp_path / "mnist").mkdir()
    arrays = list(write_set(tmp_path / "mnist").values())
    for part, images in (("train", arrays[0]), ("test", arrays[2])):
        ours = data.load("mnist", root=tmp_path, part=part, likelihood="normal")
        np.testing.assert_allclose(ours.images[:, 0], images / 255, rtol=1e-6)
    for file in (tmp_path / "mnist").glob("t10k*"):
        file.unlink()
    assert len(data.load("mnist", root=tmp_path, part="train")) == 6


def test_mnist_is_binary_by_default_and_the_same_every_time(tmp_path):
    write_set(tmp_path)
    ours = data.load("mnist", root=tmp_path)
    assert ours.likelihood == "bernoulli"
    assert set(np.unique(ours.x)) == {0, 1}
    np.testing.assert_array_equal(data.load("mnist", root=tmp_path).x, ours.x)


def test_what_a_folder_may_lack(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no file train-images-idx3-ubyte or .*gz for mnist"):
        data.load("mnist", root=tmp_path)
    arrays = write_set(tmp_path, zipped=False)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels in .* has shape \(5,\), and there are 6 images"):
        data.load("mnist", root=tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(arrays["train-images-idx3-ubyte"].reshape(6, 6)))
    with pytest.raises(ValueError, match=r"train-images in .* holds uint8 numbers of shape \(6, 6\)"):
        data.load("mnist", root=tmp_path)


def test_arguments_that_do_not_belong(tmp_path):
    with pytest.raises(ValueError, match="part is 'valid'"):
        data.load("mnist", root=tmp_path, part="valid")
    for kwargs in ({"root": tmp_path}, {"part": "test"}):
        with pytest.raises(ValueError, match="digits comes with scikit-learn"):
            data.load("digits", **kwargs)
    with pytest.raises(ValueError, match="brings its labels"):
        data.load("digits", label="target")


def test_openml(monkeypatch):
    asked = []

    def fetch(name, *, version, as_frame):
        asked.append((name, version, as_frame))
        return SimpleNamespace(
            data=np.full((70_000, 784), 255, np.uint8), target=np.arange(70_000).astype(str).astype(object)
        )

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    ours = data.load("fashion-mnist", part="test")
    assert asked == [("Fashion-MNIST", 1, False)]
    assert (ours.x.shape, ours.image_shape) == ((10_000, 784), (28, 28))
    np.testing.assert_array_equal(ours.y, np.arange(60_000, 70_000))


def test_openml_without_a_network(monkeypatch):
    def fetch(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(OSError, match=r"kmnist is not in scikit-learn's data folder .* give root"):
        data.load("kmnist")
