"""What the arguments of diagnostics must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xarray as xr

from pyro_vae.arguments import check_numbers, check_programs, kind, require_count


def check_request(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    draws: int,
    seed: int,
    chunk: int,
    least: int = 1,
    advice: str = "",
) -> None:
    """What every diagnostic asks of a pair, of the number of its draws and of what goes through at once."""
    check_programs(model=model, guide=guide)
    require_count("draws", draws, least, advice)
    check_numbers(seed=seed)
    require_count("chunk", chunk, 1, "; it counts rows that go through the networks at once")


def require_variables(name: str, dataset: Any, source: str, *variables: str) -> None:
    """Raise an error unless ``dataset`` has these variables; ``source`` makes such datasets."""
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"{name} is {kind(dataset)}; give what {source} returns")
    missing = [
        variable for variable in variables if variable not in dataset and variable not in dataset.attrs
    ]
    if missing:
        raise ValueError(f"{name} has no {missing[0]!r}; give what {source} returns")


def require_tree(name: str, tree: Any, group: str = "posterior") -> None:
    """Raise an error unless ``tree`` is a DataTree with that group."""
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            f"{name} is {kind(tree)}; give a DataTree, such as from_pyro_svi or reference_posterior returns"
        )
    if group not in tree.children:
        groups = ", ".join(map(str, tree.children)) or "none"
        raise ValueError(f"{name} has no group {group!r} but {groups}; give a tree with draws in it")
