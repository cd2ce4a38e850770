"""A word where a function runs without the parameters that a fit has given it.

The values of ``pyro.param`` statements belong to the fit. A user who then runs the function itself, in
``Predictive`` say, gets initial values from Pyro's store without any sign of it. Nobody but the store sees
that happen, so the store is asked to tell of it; what it does stays the same.
"""

import logging
import sys
from typing import Any
from weakref import WeakSet

import pyro
from pyro.distributions import constraints
from torch import nn

from pyro_vae.pairs.isolation import blocks_around
from pyro_vae.pairs.parameters import Bound

logger = logging.getLogger(__name__)

_FITTED: "WeakSet[Bound]" = WeakSet()
"""The functions that were fitted, as long as somebody holds their fit."""


def remember(*programs: Any) -> None:
    """Tell of ``pyro.param`` statements of these programs that start anew outside of their fit."""
    functions = [program for program in programs if isinstance(program, Bound)]
    for program in functions:
        code = getattr(program.function, "__code__", None)
        if code is not None and any(
            not isinstance(v, nn.Parameter) for v in program.state["params"].values()
        ):
            _FITTED.add(program)
            _listen()


def _listen() -> None:
    store: Any = pyro.get_param_store()
    if "setdefault" in vars(store):
        return
    make = store.setdefault

    def setdefault(name: str, value: Any, constraint: Any = constraints.real) -> Any:
        if name not in store and not blocks_around() and not isinstance(value, nn.Parameter):
            _tell(name)
        return make(name, value, constraint)

    store.setdefault = setdefault


def _tell(name: str) -> None:
    by_code = {p.function.__code__: p for p in _FITTED if name in p.state["params"]}
    frame = sys._getframe(1)
    while frame is not None:
        program = by_code.get(frame.f_code)
        if program is not None:
            logger.warning(
                "pyro.param(%r) of %s starts from its initial value, not from that of the fit; call "
                "fit.model and fit.guide in its place, or put this call into `with fit.parameters():`",
                name,
                program.__name__,
            )
            return
        frame = frame.f_back  # type: ignore[assignment]
