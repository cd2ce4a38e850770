"""The one argument of the generated function: a C struct, declared here once for both languages."""

import ctypes
from typing import Any

_FIELDS = (
    ("int64_t", "steps", "how many to take"),
    ("int64_t", "threads", "how many to ask for"),
    ("const int64_t*", "index", "[steps, BATCH]: rows of the data"),
    ("const T* const*", "data", "each part of the data, row-major"),
    ("T* const*", "parameters", "changed in place"),
    ("T* const*", "first_moments", "Adam's, by parameter, changed in place"),
    ("T* const*", "second_moments", "likewise"),
    ("const T* const*", "constants", "attributes of the graph"),
    ("const T*", "noise", "[steps, NOISE]: standard normal and uniform numbers"),
    ("const T*", "kl_weight", "[steps]"),
    ("const double*", "lr", "[steps, PARAMETERS]: of each step that is taken"),
    ("const double*", "eps", "[PARAMETERS]: Adam's"),
    ("const double*", "steps_before", "[PARAMETERS]: how many Adam has taken before"),
    ("double", "beta1", "Adam's"),
    ("double", "beta2", "Adam's"),
    ("double", "max_norm", "the gradient is clipped to this norm; infinity: it is not"),
    ("int64_t", "bad_before", "steps in a row before this call that were not finite"),
    ("int64_t", "most_bad", "this number of them in a row ends the call"),
    ("int64_t*", "taken", "counts the steps that changed the parameters"),
    ("T*", "loss", "[steps]: these four are results"),
    ("T*", "kl", "[steps]"),
    ("T*", "reconstruction", "[steps]"),
    ("T*", "norm", "[steps]: of the gradient, before it is clipped"),
    ("bool*", "bad", "[steps]: whether the step was not finite and changed nothing"),
    ("T*", "arena", "[RESULTS]: intermediate results of a step"),
    ("T*", "packing", "for each thread, a panel of a matrix"),
    ("double*", "squares", "partial sums of the norm"),
)

_CTYPES: dict[str, Any] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


class Call(ctypes.Structure):
    """As in C; pointers are addresses."""

    _fields_ = [(name, _CTYPES.get(kind, ctypes.c_void_p)) for kind, name, _ in _FIELDS]


def declaration() -> str:
    """The struct in C++; ``T`` is the number type of the step."""
    return "\n".join(
        ["struct Call {", *(f"  {kind} {name};  // {note}" for kind, name, note in _FIELDS), "};"]
    )
