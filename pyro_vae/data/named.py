"""Data sets with a name: scikit-learn's digits, and MNIST with its relatives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pyro_vae.arguments import brief
from pyro_vae.data.binarization import binarize
from pyro_vae.data.dataset import DataSet
from pyro_vae.data.idx import read_idx

Part = Literal["all", "train", "test"]
Pixels = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

_ON_OPENML = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST", "kmnist": "Kuzushiji-MNIST"}
_N_TRAIN = 60_000  # OpenML keeps the training images first


def names() -> list[str]:
    """The names that `load` knows."""
    return ["digits", *_ON_OPENML]


def load_named(
    name: str, *, root: Path | None, part: Part, likelihood: str | None, likelihood_args: Mapping[str, Any]
) -> DataSet:
    """A data set by its name; see `load`."""
    if part not in get_args(Part):
        raise ValueError(f'part is {brief(part)}; give "all", "train" or "test"')
    if name == "digits":
        if root is not None or part != "all":
            raise ValueError("digits comes with scikit-learn, in one part; give neither root nor part")
        pixels, labels = _digits()
        return _images(name, pixels, labels, 16, likelihood, likelihood_args)
    pixels, labels = _from_openml(name, part) if root is None else _from_folder(name, root, part)
    return _images(name, pixels, labels, 255, likelihood, likelihood_args)


def _images(
    name: str,
    pixels: Pixels,
    labels: Labels,
    total: int,
    asked: str | None,
    likelihood_args: Mapping[str, Any],
) -> DataSet:
    """Pixels (n, height, width) that count 0…total, written as the likelihood wants them."""
    likelihood = asked or ("binomial" if name == "digits" else "bernoulli")
    why = f"pixels count 0 to {total}" if likelihood == "binomial" else "pixels are drawn as 0 or 1"
    counts = pixels.reshape(len(pixels), -1).astype(np.float32)
    arguments: dict[str, Any] = {}
    if likelihood == "binomial":
        x, arguments = counts, {"total_count": total}
    elif likelihood == "categorical":
        x, arguments = counts, {"categories": total + 1}
    elif likelihood in {"poisson", "negative-binomial"}:
        x = counts
    elif likelihood == "bernoulli":
        x = binarize(counts / np.float32(total))
    else:
        x = counts / np.float32(total)
    shape = pixels.shape[1:]
    why = "it was asked for" if asked else why
    return DataSet(name, x, labels, likelihood, arguments | dict(likelihood_args), shape, why=why)


def _digits() -> tuple[Pixels, Labels]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def _from_folder(name: str, root: Path, part: Part) -> tuple[Pixels, Labels]:
    """Images and labels from IDX files, as they are distributed."""
    stems = {"train": ["train"], "test": ["t10k"], "all": ["train", "t10k"]}[part]
    images = [read_idx(_find(name, root, f"{stem}-images", "idx3")) for stem in stems]
    labels = [read_idx(_find(name, root, f"{stem}-labels", "idx1")) for stem in stems]
    for stem, image, label in zip(stems, images, labels, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] == 0:
            raise ValueError(
                f"{stem}-images in {root} holds {image.dtype} numbers of shape {image.shape}; "
                "images are bytes of shape (n, height, width)"
            )
        if label.shape != image.shape[:1]:
            raise ValueError(
                f"{stem}-labels in {root} has shape {label.shape}, and there are {len(image)} images"
            )
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


def _find(name: str, root: Path, stem: str, kind: str) -> Path:
    """The file of that stem, in the spellings that are about, in the folder or in one of the set's name."""
    spellings = [f"{stem}{separator}{kind}-ubyte" for separator in "-."]
    for folder in (root, root / name):
        for spelling in spellings:
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if path.is_file():
                    return path
    raise FileNotFoundError(
        f"root is {str(root)!r}, which has no file {spellings[0]} or {spellings[0]}.gz for {name}; give a "
        "folder that has"
    )


def _from_openml(name: str, part: Part) -> tuple[Pixels, Labels]:
    """Images and labels from OpenML, kept in scikit-learn's data folder after the first time."""
    from sklearn.datasets import fetch_openml

    try:
        bunch = fetch_openml(_ON_OPENML[name], version=1, as_frame=False)
    except OSError as error:
        raise OSError(
            f"{name} is not in scikit-learn's data folder and could not be downloaded from OpenML ({error}); "
            "give root, a folder with its IDX files"
        ) from error
    rows = {"train": slice(None, _N_TRAIN), "test": slice(_N_TRAIN, None), "all": slice(None)}[part]
    return bunch.data.reshape(-1, 28, 28)[rows], bunch.target.astype(np.int64)[rows]
