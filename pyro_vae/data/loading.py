"""`load`: a data set by name or by path."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.arguments import brief
from pyro_vae.data.dataset import DataSet
from pyro_vae.data.files import SUFFIXES, TableOptions, load_file
from pyro_vae.data.layout import NAMED_SEPARATORS
from pyro_vae.data.named import Part, load_named, names
from pyro_vae.models import likelihoods


def load(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    part: Part = "all",
    label: str | None = None,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    separator: str | None = None,
    likelihood: str | None = None,
    likelihood_args: Mapping[str, Any] | None = None,
) -> DataSet:
    """A data set, checked, with the likelihood that suits it.

    Nothing is ever unpickled.

    Parameters
    ----------
    name_or_path
        "digits" (1,797 images of 8 × 8, integers 0…16, from scikit-learn), "mnist", "fashion-mnist", "kmnist"
        (70,000 images of 28 × 28), or a path that ends in .npy, .npz (arrays "x" and, optionally, "y"), .csv
        or .parquet. An .npy file of float32 stays memory-mapped.
    root
        Folder with the IDX files of an MNIST-like set, gzipped or not. Without it scikit-learn downloads the
        set from OpenML, and keeps it.
    part
        Of an MNIST-like set: "train" (60,000), "test" (10,000) or "all", training images first.
    label
        Column of a table that holds labels.
    columns
        Columns of a table to read; by default all but the label and an index without a name.
    header
        Whether the first line of a .csv file names the columns. By default this is found out, and asked for
        where it cannot be.
    separator
        Between the fields of a .csv file. By default the one of comma, semicolon, tab, bar or spaces that
        divides every line; numbers may have a decimal comma.
    likelihood
        Name of another likelihood than the suggested one. Named sets are written as it wants them: drawn
        binary with a fixed seed for "bernoulli", counts for "binomial", intensities in [0, 1] for
        "continuous-bernoulli" and "normal". A file's values are taken as they are: by default "bernoulli" for
        0 and 1, "binomial" for bytes (uint8), "poisson" for other non-negative integers, else "normal".
    likelihood_args
        Its arguments. A file's "binomial" takes its largest value as total_count, "categorical" one more as
        categories.

    Returns
    -------
    DataSet
        With x of shape (n, features), float32; its ``description`` says what was read.

    Raises
    ------
    FileNotFoundError
        If the path, or a file under ``root``, does not exist.
    TypeError
        If ``name_or_path``, ``root`` or ``label`` is no text or path.
    ValueError
        If the name is unknown, or the file is damaged, empty, constant or not numeric, or holds NaN, infinite
        values or values that the likelihood cannot give, or can be read in two ways; the sentence names file,
        row, column and remedy.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.x.shape, digits.likelihood, digits.likelihood_args, digits.image_shape
    ((1797, 64), 'binomial', {'total_count': 16}, (8, 8))
    """
    if not isinstance(name_or_path, str | os.PathLike):
        hint = "; to use an array, give it as DataSet(name, x)" if hasattr(name_or_path, "shape") else ""
        raise TypeError(f"name_or_path is {brief(name_or_path)}; give the name of a data set or a path{hint}")
    if root is not None and not isinstance(root, str | os.PathLike):
        raise TypeError(f"root is {brief(root)}; give the path of a folder")
    options = _table_options(label, columns, header, separator)
    arguments = dict(likelihood_args or {})
    if arguments and likelihood is None:
        raise ValueError(
            f"likelihood_args is {arguments}, without a likelihood that they belong to; give likelihood"
        )
    if likelihood is not None and likelihood not in likelihoods.names():
        raise ValueError(f"likelihood is {brief(likelihood)}; give one of {', '.join(likelihoods.names())}")
    folder = None if root is None else Path(root)
    if name_or_path in names():
        if label is not None:
            raise ValueError(
                f"label is {brief(label)}, a column of a table, "
                f"and {name_or_path} brings its labels; leave it out"
            )
        for name, value in options.given.items():
            raise ValueError(
                f"{name} is {brief(value)}, for tables in files, and {name_or_path} is none; leave it out"
            )
        source = str(name_or_path)
        data = load_named(source, root=folder, part=part, likelihood=likelihood, likelihood_args=arguments)
    else:
        path = _require_file(name_or_path)
        if folder is not None or part != "all":
            raise ValueError(f"root and part are for named data sets, and {path} is a file; leave them out")
        source = str(path)
        data = load_file(path, options=options, likelihood=likelihood, likelihood_args=arguments)
    chosen = likelihoods.get(data.likelihood, **data.likelihood_args)
    chosen.check(torch.from_numpy(data.x), name=source, columns=data.columns)
    return data


def _table_options(label: Any, columns: Any, header: Any, separator: Any) -> TableOptions:
    if label is not None and not isinstance(label, str):
        raise TypeError(f"label is {brief(label)}; give the name of a column")
    if header is not None and not isinstance(header, bool):
        raise TypeError(f"header is {brief(header)}; give True or False")
    if separator is not None and not isinstance(separator, str):
        raise TypeError(
            f"separator is {brief(separator)}; give the character between two fields, such as ';'"
        )
    if separator is not None and len(separator) != 1 and separator not in NAMED_SEPARATORS:
        raise ValueError(f"separator is {brief(separator)}; give one character, or one of tab and space")
    if columns is not None:
        columns = [columns] if isinstance(columns, str) else columns
        if not isinstance(columns, Sequence) or not all(isinstance(name, str) for name in columns):
            raise TypeError(f"columns is {brief(columns)}; give the names of columns, such as ['a', 'b']")
        if not columns:
            raise ValueError("columns is empty; name at least one, or leave it out for all")
    return TableOptions(label, columns, header, separator)


def _require_file(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.suffix.lower() not in SUFFIXES:
        if str(name_or_path) and path.is_dir():
            raise ValueError(f"{path} is a folder; name the data set, and give the folder as root")
        close = difflib.get_close_matches(str(name_or_path).lower(), names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{str(name_or_path)!r} is neither a data set ({', '.join(names())}) nor a path that ends in "
            f"{', '.join(SUFFIXES)}.{hint}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of one")
    return path
