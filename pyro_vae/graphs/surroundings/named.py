"""What the code of a function names, and whose a class is."""

import builtins
import dis
import functools
import sys
from types import CodeType

from pyro_vae.graphs.places import is_library


@functools.lru_cache(maxsize=4096)
def operands_of(code: CodeType, *operations: str) -> frozenset[str]:
    """Of these operations in a function's code, inner functions included."""
    found = [step.argval for step in dis.get_instructions(code) if step.opname in operations]
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found).union(*(operands_of(other, *operations) for other in inner))


def names_in(code: CodeType) -> frozenset[str]:
    """The attributes and string keys that a function's code names, inner functions included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    words = [constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier()]
    return frozenset((*code.co_names, *words)).union(*map(names_in, inner))


def is_of_user(kind: type) -> bool:
    """Whether a class is of no library.

    >>> is_of_user(functools.partial), is_of_user(dict)
    (False, False)
    """
    module = sys.modules.get(kind.__module__)
    if kind.__module__ == builtins.__name__ or module is None:
        return False
    file = getattr(module, "__file__", None)
    return kind.__module__ == "__main__" or (file is not None and not is_library(file))


def is_opaque(kind: type) -> bool:
    library = kind.__module__.partition(".")[0]
    return library in ("pandas", "xarray") or (
        is_of_user(kind) and any(vars(base).get("__slots__") for base in kind.__mro__)
    )
