"""Likelihoods by name."""

import difflib
import inspect
from typing import Any

from pyro_vae.arguments import brief
from pyro_vae.models.likelihoods.base import Likelihood
from pyro_vae.models.likelihoods.continuous import ContinuousBernoulli, Normal, StudentT
from pyro_vae.models.likelihoods.discrete import Bernoulli, Binomial, Categorical, NegativeBinomial, Poisson

_BY_NAME: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "binomial": Binomial,
    "categorical": Categorical,
    "continuous-bernoulli": ContinuousBernoulli,
    "negative-binomial": NegativeBinomial,
    "normal": Normal,
    "poisson": Poisson,
    "student-t": StudentT,
}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_BY_NAME)


def get(name: str, **arguments: Any) -> Likelihood:
    """A likelihood by name.

    Raises
    ------
    TypeError
        If the name is no text.
    ValueError
        If there is no such name, or the likelihood needs an argument that was not given.

    Examples
    --------
    >>> get("binomial", total_count=16)
    Binomial(total_count=16)
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a likelihood is {brief(name)}; give one of {', '.join(names())}")
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name.lower(), _BY_NAME, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"No likelihood is called {name!r}.{hint} The names are {', '.join(names())}.")
    try:
        return _BY_NAME[name](**arguments)
    except TypeError as error:
        takes = ", ".join(inspect.signature(_BY_NAME[name]).parameters) or "nothing"
        reason = str(error).rpartition("__init__() ")[2]
        raise ValueError(
            f"The likelihood {name!r} cannot be made from {arguments}: {reason}. It takes {takes}."
        ) from error
