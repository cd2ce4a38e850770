"""ArviZ before 1.0, the newest for Python 3.11, whose functions know their own class of trees alone.

Its ``arviz.summary``, ``arviz.plot_posterior`` and the others ask one function what they were given. Where a
program has imported it, that function is taught that a ``DataTree`` is such a tree, which
``arviz.from_datatree`` has been able to say all along. Nothing else of ArviZ changes.
"""

import functools
import sys
from typing import Any


def teach_older_arviz() -> None:
    """Let ArviZ before 1.0 take trees, if it is imported; else do nothing."""
    arviz: Any = sys.modules.get("arviz")
    convert = getattr(arviz, "convert_to_inference_data", None)
    if convert is None or not hasattr(arviz, "from_datatree") or hasattr(convert, "__wrapped__"):
        return
    import xarray as xr

    @functools.wraps(convert)
    def convert_trees_too(obj: Any, **options: Any) -> Any:
        return convert(arviz.from_datatree(obj) if isinstance(obj, xr.DataTree) else obj, **options)

    rooms = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "arviz"]
    for room in rooms:
        for name, value in list(vars(room).items()):
            if value is convert:
                setattr(room, name, convert_trees_too)
